"""What users import: the bases to build parts of their own, and how to register them.

from toto.api import TokenGrid, Tokenizer, TokenizerConfig, register_tokenizer
"""

from __future__ import annotations

from toto.backbones.base import Backbone, Cache, ParamRole, resolve_layers
from toto.backbones.config import BACKBONES, BackboneConfig
from toto.heads.base import Head
from toto.heads.config import HEADS, HeadConfig
from toto.layers.masks import CAUSAL, Mask
from toto.tasks.config import (
    FEATURE_NETWORKS,
    TASKS,
    FeatureNetworkConfig,
    TokenizerTaskConfig,
)
from toto.tasks.perceptual import FeatureNetwork
from toto.tasks.tokenizer import TokenizerTask
from toto.tokenizers.base import PatchGrid, TokenGrid, Tokenizer
from toto.tokenizers.config import TOKENIZERS, TokenizerConfig, square_grid

__all__ = [
    "CAUSAL",
    "Backbone",
    "BackboneConfig",
    "Cache",
    "FeatureNetwork",
    "FeatureNetworkConfig",
    "Head",
    "HeadConfig",
    "Mask",
    "ParamRole",
    "PatchGrid",
    "TokenGrid",
    "Tokenizer",
    "TokenizerConfig",
    "TokenizerTask",
    "TokenizerTaskConfig",
    "register_backbone",
    "register_feature_network",
    "register_head",
    "register_task",
    "register_tokenizer",
    "resolve_layers",
    "square_grid",
]

register_tokenizer = TOKENIZERS.register
register_backbone = BACKBONES.register
register_head = HEADS.register
register_task = TASKS.register
register_feature_network = FEATURE_NETWORKS.register
