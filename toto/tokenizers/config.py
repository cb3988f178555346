"""What a recipe says of a tokenizer. No torch here: a recipe is judged before a weight is made."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator

from toto.registry import Component, Registry

if TYPE_CHECKING:
    from toto.tokenizers.base import Tokenizer

__all__ = ["TOKENIZERS", "DvaeConfig", "PatchConfig", "TokenizerConfig"]

TOKENIZERS: Registry[TokenizerConfig] = Registry("tokenizer", builtins="toto.tokenizers.config")


class TokenizerConfig(Component, ABC):
    """Base of every tokenizer's Config. Frames are square and tokenized independently."""

    output: ClassVar[Literal["codes", "patches"]] = "codes"
    """`codes`: ids `BHW` from 0 to codebook_size-1. `patches`: vectors `BHWC`."""

    @property
    @abstractmethod
    def codebook_size(self) -> int:
        """Number of codes; 0 for patches."""

    @property
    def patch_dim(self) -> int:
        """C, the size of a patch vector; 0 for codes."""
        return 0

    @abstractmethod
    def grid(self, resolution: int) -> tuple[int, int]:
        """(H, W) of a picture of `resolution` × `resolution` pixels.

        Raises:
            ValueError: the tokenizer cannot take that resolution; the message names one it can.
        """

    @property
    def missing_weights(self) -> str | None:
        """What the user must do before this tokenizer means anything, or None."""
        return None

    @abstractmethod
    def build(self) -> Tokenizer:
        """Make the tokenizer and load its weights.

        Raises:
            UserError: the weights are missing or are not this tokenizer's.
        """


def _grid_of_multiple(resolution: int, factor: int) -> tuple[int, int]:
    if resolution < factor or resolution % factor:
        fits = max(round(resolution / factor), 1) * factor
        raise ValueError(f"{resolution} px is no multiple of {factor} px per token; {fits} is")
    return resolution // factor, resolution // factor


@TOKENIZERS.register("dvae")
class DvaeConfig(TokenizerConfig):
    """The discrete VAE of DALL-E (Ramesh et al. 2021; github openai/DALL-E), 8 px per token.

    The defaults are the published network: 53.8 M parameters in the encoder, 43.8 M in the
    decoder, 8192 codes.
    """

    weights: str | None = Field(
        None,
        description="`toto:NAME` for weights that toto ships, the path of a .safetensors file, or "
        "`random:SEED`; none while the tokenizer itself is trained",
    )
    num_codes: PositiveInt = 8192
    width: PositiveInt = Field(
        256, multiple_of=4, description="channels of the first group, then 2, 4, 8 times"
    )
    blocks_per_group: PositiveInt = 2
    decoder_stem: PositiveInt = Field(128, description="channels after the one-hot 1×1 conv")

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, weights: str | None) -> str | None:
        if weights is None or re.fullmatch(r"toto:.+|random:\d{1,18}|.+\.safetensors", weights):
            return weights
        raise ValueError(
            f"{weights!r} names no weights; write toto:NAME, random:SEED (up to 18 digits) or the "
            "path of a .safetensors file"
        )

    @property
    def codebook_size(self) -> int:
        """One id per code."""
        return self.num_codes

    @property
    def missing_weights(self) -> str | None:
        """Weights are needed before the ids mean anything."""
        if self.weights is None:
            return (
                "Write weights: toto:dvae-tiny for the shipped small one (with its sizes), the "
                "path of a .safetensors file that `toto tokenizer train` wrote, or random:0"
            )
        return None

    def grid(self, resolution: int) -> tuple[int, int]:
        """Three 2×2 poolings: 8 px per token."""
        return _grid_of_multiple(resolution, 8)

    def build(self) -> Tokenizer:
        """Make the dVAE."""
        from toto.tokenizers.dvae import Dvae

        return Dvae(self)


@TOKENIZERS.register("patch")
class PatchConfig(TokenizerConfig):
    """Patches normalised by their own mean and deviation (He et al. 2022, MAE)."""

    output: ClassVar[Literal["codes", "patches"]] = "patches"

    patch_size: PositiveInt = Field(16, description="side of a patch in pixels")

    @property
    def codebook_size(self) -> int:
        """Patches are continuous: no codebook."""
        return 0

    @property
    def patch_dim(self) -> int:
        """Values of a patch: p·p·3."""
        return self.patch_size * self.patch_size * 3

    def grid(self, resolution: int) -> tuple[int, int]:
        """One token per patch."""
        return _grid_of_multiple(resolution, self.patch_size)

    def build(self) -> Tokenizer:
        """Make the patch tokenizer."""
        from toto.tokenizers.patch import PatchTokenizer

        return PatchTokenizer(self)
