"""Parameters and multiply-accumulates of a whole model, by arithmetic on its Configs. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from toto.backbones.config import PATCH_MLP_RATIO
from toto.sequence import NUM_SPECIAL_IDS, SequenceLayout

if TYPE_CHECKING:
    from toto.backbones.config import BackboneConfig
    from toto.tokenizers.config import TokenizerConfig

__all__ = ["ModelSize"]

NUM_STARTS = 2


@dataclass(frozen=True)
class ModelSize:
    """What tokenizers and a backbone make together; tests hold it to the real module.

    Attributes:
        vocab_size: V, special ids included; 0 for patch targets.
        embedding: parameters before the backbone, start vectors of patches included.
        backbone: parameters of the blocks and the last norm.
        readout: parameters of a readout of its own; 0 where it is tied.
        input_macs: multiply-accumulates of embedding a visual token.
        output_macs: multiply-accumulates of the readout for a target.
        output: what the targets are.
    """

    vocab_size: int
    embedding: int
    backbone: int
    readout: int
    input_macs: int
    output_macs: int
    output: Literal["codes", "patches"]

    @classmethod
    def of(
        cls,
        tokenizer: TokenizerConfig,
        backbone: BackboneConfig,
        target_tokenizer: TokenizerConfig | None = None,
    ) -> ModelSize:
        """The size of the model between these, as `AutoregressiveModel` takes them."""
        target, width = target_tokenizer or tokenizer, backbone.width
        vocab_size = target.codebook_size + NUM_SPECIAL_IDS if target.output == "codes" else 0
        if vocab_size:
            output_macs = vocab_size * width
        elif backbone.patch_readout == "linear":
            output_macs = target.patch_dim * width
        else:
            output_macs = PATCH_MLP_RATIO * width * (width + target.patch_dim)
        if tokenizer.output == "codes":
            embedding = vocab_size * width
            readout = 0 if backbone.tie_embeddings else output_macs
        else:
            embedding = (tokenizer.patch_dim + NUM_STARTS) * width
            readout = output_macs
        return cls(
            vocab_size=vocab_size,
            embedding=embedding,
            backbone=backbone.num_params(),
            readout=readout,
            input_macs=tokenizer.patch_dim * width,
            output_macs=output_macs,
            output=target.output,
        )

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embedding + self.backbone + self.readout

    def forward_macs(self, backbone: BackboneConfig, layout: SequenceLayout) -> int:
        """Multiply-accumulates of one sequence, forward: embedding of patches, blocks, readout."""
        return (
            layout.num_visual * self.input_macs
            + backbone.forward_macs(layout.length)
            + layout.num_targets(self.output) * self.output_macs
        )
