"""Parameters and multiply-accumulates of a whole model, by arithmetic on its Configs. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from toto.sequence import NUM_SPECIAL_IDS, SequenceLayout

if TYPE_CHECKING:
    from toto.backbones.config import BackboneConfig
    from toto.tokenizers.config import TokenizerConfig

__all__ = ["ModelSize"]

NUM_STARTS = 2


@dataclass(frozen=True)
class ModelSize:
    """What a tokenizer and a backbone make together; tests hold it to the real module.

    Attributes:
        vocab_size: V, special ids included; 0 for patches.
        embedding: parameters before the backbone, start vectors of patches included.
        backbone: parameters of the blocks and the last norm.
        readout: parameters of a readout of its own; 0 where it is tied.
    """

    vocab_size: int
    embedding: int
    backbone: int
    readout: int
    outputs: int
    width: int

    @classmethod
    def of(cls, tokenizer: TokenizerConfig, backbone: BackboneConfig) -> ModelSize:
        """The size of the model between these two."""
        width = backbone.width
        if tokenizer.output == "patches":
            vocab_size, outputs = 0, tokenizer.patch_dim
            embedding, readout = (outputs + NUM_STARTS) * width, outputs * width
        else:
            vocab_size = outputs = tokenizer.codebook_size + NUM_SPECIAL_IDS
            embedding = outputs * width
            readout = 0 if backbone.tie_embeddings else outputs * width
        return cls(vocab_size, embedding, backbone.num_params(), readout, outputs, width)

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embedding + self.backbone + self.readout

    def forward_macs(self, backbone: BackboneConfig, layout: SequenceLayout) -> int:
        """Multiply-accumulates of one sequence, forward: blocks and readout."""
        return backbone.forward_macs(layout.length) + layout.length * self.width * self.outputs
