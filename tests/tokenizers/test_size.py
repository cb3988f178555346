"""Counts from Configs beside the real modules."""

from __future__ import annotations

import pytest
import torch

from toto.tokenizers.config import DvaeConfig, PatchConfig, TokenizerConfig, VqganConfig

CONFIGS = [
    DvaeConfig(),
    DvaeConfig(num_codes=32, width=8, blocks_per_group=1, decoder_stem=12),
    VqganConfig(),
    VqganConfig(num_codes=1024),
    VqganConfig(
        num_codes=64, code_dim=8, latent_dim=16, width=16, width_multipliers=(1, 2, 4),
        blocks_per_level=1, attention_levels=(0, 2), norm_groups=8,
    ),
    PatchConfig(),
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_parameters_are_those_of_the_module(config: TokenizerConfig):
    with torch.device("meta"):
        module = config.build()
    assert config.num_params() == sum(parameter.numel() for parameter in module.parameters())
