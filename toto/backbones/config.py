"""What a recipe says of a backbone, and the sizes of the published presets. No torch here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from toto.registry import Component, Registry, nearest

if TYPE_CHECKING:
    from toto.backbones.base import Backbone

__all__ = ["BACKBONES", "LLAMA_PRESETS", "PATCH_MLP_RATIO", "BackboneConfig", "LlamaConfig"]

BACKBONES: Registry[BackboneConfig] = Registry("backbone", builtins="toto.backbones.config")

PATCH_MLP_RATIO = 4
"""Hidden values of the MLP that reads patches out, over the width."""


class BackboneConfig(Component, ABC):
    """Base of every backbone's Config: `[B, L, D]` in, `[B, L, D]` out, causal."""

    width: PositiveInt = Field(description="D, the size of every token's vector")
    num_layers: PositiveInt = Field(description="number of blocks")
    tie_embeddings: bool = Field(
        True, description="the readout shares the embedding's matrix; patch inputs have none"
    )
    patch_readout: Literal["linear", "mlp"] = Field(
        "linear",
        description="what makes the next patch of a vector: a matrix, or an MLP of 4 · width",
    )

    @abstractmethod
    def num_params(self) -> int:
        """Parameters of the blocks and the last norm, without embedding and readout."""

    @abstractmethod
    def forward_macs(self, length: int) -> int:
        """Multiply-accumulates of one sequence of `length` through the blocks, forward."""

    @abstractmethod
    def build(self) -> Backbone:
        """Make the backbone, freshly initialised."""


# Table 1 of the paper. ffn_dim 3072, 4096 and 5632 with tied embeddings and full heads are the only
# sizes that give its parameter counts, and Table 4's compute confirms large.
LLAMA_PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"width": 64, "num_layers": 2, "num_heads": 2, "ffn_dim": 192},
    "small": {"width": 192, "num_layers": 6, "num_heads": 6, "ffn_dim": 512},
    "base": {"width": 768, "num_layers": 12, "num_heads": 12, "ffn_dim": 3072},
    "large": {"width": 1024, "num_layers": 16, "num_heads": 16, "ffn_dim": 4096},
    "1b": {"width": 2048, "num_layers": 22, "num_heads": 16, "ffn_dim": 5632},
}


@BACKBONES.register("llama")
class LlamaConfig(BackboneConfig):
    """LLaMA (Touvron et al. 2023): pre-norm RMSNorm, SwiGLU, RoPE, causal attention, no biases.

    `preset` fills in the sizes of a published model; a field beside it replaces the preset's value.
    """

    num_heads: PositiveInt = Field(description="N attention heads; width / num_heads is K")
    ffn_dim: PositiveInt = Field(description="hidden size of the SwiGLU")
    rope_base: PositiveFloat = Field(
        10_000.0, description="10,000 in pre-training, 50,000 for 32×32"
    )
    norm_eps: PositiveFloat = 1e-5

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "preset" not in data:
            return data
        preset = data["preset"]
        if not isinstance(preset, str) or preset not in LLAMA_PRESETS:
            guess = nearest(str(preset), list(LLAMA_PRESETS))
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise ValueError(
                f"unknown preset {preset!r}; llama has {', '.join(LLAMA_PRESETS)}.{hint}"
            )
        given = {key: value for key, value in data.items() if key != "preset"}
        return {**LLAMA_PRESETS[preset], **given}

    @model_validator(mode="after")
    def _check_heads(self) -> LlamaConfig:
        if self.width % self.num_heads:
            raise ValueError(
                f"width {self.width} does not divide by num_heads {self.num_heads}; "
                "choose num_heads among its divisors"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"width / num_heads = {self.head_dim} is odd, and RoPE turns pairs; "
                "choose another num_heads"
            )
        return self

    @property
    def head_dim(self) -> int:
        """K, the size of one head."""
        return self.width // self.num_heads

    def num_params(self) -> int:
        """Four attention matrices, three of the SwiGLU, two norms a block, and the last norm."""
        block = 4 * self.width**2 + 3 * self.width * self.ffn_dim + 2 * self.width
        return self.num_layers * block + self.width

    def forward_macs(self, length: int) -> int:
        """Products of all matrices, and scores and values over the causal half."""
        matrices = 4 * self.width**2 + 3 * self.width * self.ffn_dim
        attention = 2 * self.width * (length + 1) // 2
        return self.num_layers * length * (matrices + attention)

    def build(self) -> Backbone:
        """Make the LLaMA."""
        from toto.backbones.llama import Llama

        return Llama(self)
