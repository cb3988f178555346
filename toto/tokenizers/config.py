"""What a recipe says of a tokenizer. No torch here: a recipe is judged before a weight is made."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from toto.registry import Component, Registry, unknown_name
from toto.tokenizers.official import OFFICIAL, official_name
from toto.tokenizers.size import dvae_params, vqgan_params

if TYPE_CHECKING:
    from collections.abc import Mapping, Set

    from toto.tokenizers.base import Tokenizer

__all__ = [
    "TOKENIZERS",
    "CodebookConfig",
    "DvaeConfig",
    "PatchConfig",
    "TokenizerConfig",
    "VqganConfig",
    "square_grid",
]

WEIGHTS_NEEDED = (
    "Write weights: official:NAME for published ones (`toto weights list`), toto:dvae-tiny for "
    "the shipped small one (with its sizes), the path of a .safetensors file that `toto tokenizer "
    "train` wrote, or random:0"
)

TOKENIZERS: Registry[TokenizerConfig] = Registry("tokenizer", builtins="toto.tokenizers.config")


class TokenizerConfig(Component, ABC):
    """Base of every tokenizer's Config. Frames are square and tokenized independently."""

    output: ClassVar[Literal["codes", "patches"]] = "codes"
    """`codes`: ids `BHW` from 0 to codebook_size-1. `patches`: vectors `BHWC`."""

    unrecorded: ClassVar[Mapping[str, object]] = {}
    """Setting → its value in runs that recorded their recipe before toto had the setting, where
    that is not the default."""

    @property
    @abstractmethod
    def codebook_size(self) -> int:
        """Number of codes; 0 for patches."""

    @property
    def patch_dim(self) -> int:
        """C, the size of a patch vector; 0 for codes."""
        return 0

    @property
    def inputs(self) -> str:
        """What a model takes in of this tokenizer, in a few words that a run prints."""
        return self.output

    @abstractmethod
    def grid(self, resolution: int) -> tuple[int, int]:
        """(H, W) of a picture of `resolution` × `resolution` pixels.

        Raises:
            ValueError: the tokenizer cannot take that resolution; the message names one it can.
        """

    def resolution_of(self, grid: tuple[int, int], largest: int) -> int:
        """The smallest resolution whose pictures have that grid, `largest` px at most.

        Raises:
            ValueError: there is none.
        """
        for resolution in range(1, largest + 1):
            if self._has_grid(resolution, grid):
                return resolution
        raise ValueError(
            f"{self.registered_name} gives no grid of {grid[0]} × {grid[1]} tokens at any "
            f"resolution up to {largest} px"
        )

    def _has_grid(self, resolution: int, grid: tuple[int, int]) -> bool:
        try:
            return self.grid(resolution) == grid
        except ValueError:
            return False

    @property
    def missing_weights(self) -> str | None:
        """What the user must do before this tokenizer means anything, or None."""
        return None

    def num_params(self) -> int:
        """Parameters, those of decoding too; 0 where there are none, or nobody counted."""
        return 0

    def encode_bytes(self, resolution: int) -> int:
        """Memory at the highest moment of encoding a picture; 0 where nobody counted."""
        return 0

    @abstractmethod
    def build(self) -> Tokenizer:
        """Make the tokenizer and load its weights.

        Raises:
            UserError: the weights are missing or are not this tokenizer's.
        """


def _check_weights(weights: str | None) -> str | None:
    known = r"toto:.+|official:.+|random:\d{1,18}|.+\.safetensors"
    if weights is not None and not re.fullmatch(known, weights):
        raise ValueError(
            f"{weights!r} names no weights; write official:NAME, toto:NAME, random:SEED (up to 18 "
            "digits) or the path of a .safetensors file (`toto tokenizer convert` makes one)"
        )
    name = official_name(weights)
    if name is not None and name not in OFFICIAL:
        raise ValueError(unknown_name("official weights", name, sorted(OFFICIAL)))
    return weights


WeightsSource = Annotated[
    str | None,
    AfterValidator(_check_weights),
    Field(
        description="`official:NAME` for those of `toto weights get NAME`, `toto:NAME` for weights "
        "that toto ships, the path of a .safetensors file, or `random:SEED`; none while the "
        "tokenizer itself is trained"
    ),
]


def square_grid(resolution: int, token_px: int) -> tuple[int, int]:
    """(H, W) where every token stands for `token_px` × `token_px` pixels.

    Raises:
        ValueError: the resolution is no multiple of it; the message names one that is.
    """
    if resolution < token_px or resolution % token_px:
        fits = max(round(resolution / token_px), 1) * token_px
        raise ValueError(f"{resolution} px is no multiple of {token_px} px per token; {fits} is")
    return resolution // token_px, resolution // token_px


class CodebookConfig(TokenizerConfig):
    """Base of the tokenizers that have a codebook and weights."""

    identity_fields: ClassVar[frozenset[str]] = frozenset({"num_codes"})

    weights: WeightsSource = None
    num_codes: PositiveInt = Field(description="size of the codebook")

    @property
    def codebook_size(self) -> int:
        """One id per code."""
        return self.num_codes

    @property
    def missing_weights(self) -> str | None:
        """Weights are needed before the ids mean anything."""
        return None if self.weights else WEIGHTS_NEEDED

    @model_validator(mode="after")
    def _check_official(self) -> Self:
        """Refuse official weights that are another tokenizer's or of other sizes."""
        name = official_name(self.weights)
        if name is None:
            return self
        official = OFFICIAL[name]
        if official.tokenizer != self.registered_name:
            raise ValueError(
                f"{self.weights} is a {official.tokenizer}, not a {self.registered_name}; "
                f"write name: {official.tokenizer}"
            )
        ours = self.model_dump(mode="json")
        published = type(self)(**official.sizes).model_dump(mode="json", exclude={"weights"})
        other = [f"{key}: {value}" for key, value in published.items() if value != ours[key]]
        if other:
            raise ValueError(f"{self.weights} has other sizes; write {', '.join(other)}")
        return self


@TOKENIZERS.register("dvae")
class DvaeConfig(CodebookConfig):
    """The discrete VAE of DALL-E (Ramesh et al. 2021; github openai/DALL-E), 8 px per token.

    The defaults are the published network: 53.8 M parameters in the encoder, 43.8 M in the
    decoder, 8192 codes.
    """

    identity_fields: ClassVar[frozenset[str]] = frozenset(
        {"width", "blocks_per_group", "decoder_stem"}
    )

    num_codes: PositiveInt = Field(8192, description="size of the codebook")
    width: PositiveInt = Field(
        256, multiple_of=4, description="channels of the first group, then 2, 4, 8 times"
    )
    blocks_per_group: PositiveInt = Field(2, description="residual blocks of each of four groups")
    decoder_stem: PositiveInt = Field(128, description="channels after the one-hot 1×1 conv")

    def grid(self, resolution: int) -> tuple[int, int]:
        """Three 2×2 poolings: 8 px per token."""
        return square_grid(resolution, 8)

    def num_params(self) -> int:
        """Encoder and decoder."""
        return dvae_params(self)

    def encode_bytes(self, resolution: int) -> int:
        """Four fp32 maps of `width` channels, before the first pooling."""
        return 4 * 4 * self.width * resolution**2

    def build(self) -> Tokenizer:
        """Make the dVAE."""
        from toto.tokenizers.dvae import Dvae

        return Dvae(self)


@TOKENIZERS.register("vqgan")
class VqganConfig(CodebookConfig):
    """VQGAN (Esser et al. 2021; github CompVis/taming-transformers), 16 px per token.

    The defaults are the published network of 16384 codes: 29.3 M parameters in the encoder,
    42.4 M in the decoder. The published one of 1024 codes differs in `num_codes` alone.
    """

    identity_fields: ClassVar[frozenset[str]] = frozenset(
        {
            "code_dim",
            "latent_dim",
            "width",
            "width_multipliers",
            "blocks_per_level",
            "attention_levels",
            "norm_groups",
        }
    )

    num_codes: PositiveInt = Field(16384, description="size of the codebook")
    code_dim: PositiveInt = Field(256, description="values of a code vector")
    latent_dim: PositiveInt = Field(256, description="channels between encoder and quantizer")
    width: PositiveInt = Field(128, description="channels, times `width_multipliers` by level")
    width_multipliers: tuple[PositiveInt, ...] = Field(
        (1, 1, 2, 2, 4), min_length=1, description="one a level; each level halves the resolution"
    )
    blocks_per_level: PositiveInt = Field(
        2, description="residual blocks of each level of the encoder; the decoder has one more"
    )
    attention_levels: tuple[NonNegativeInt, ...] = Field(
        (4,), description="levels whose blocks have attention, counted from 0"
    )
    norm_groups: PositiveInt = Field(32, description="groups of GroupNorm; divides every width")

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        levels = len(self.width_multipliers)
        beyond = [level for level in self.attention_levels if level >= levels]
        if beyond:
            raise ValueError(f"attention_levels names {beyond}; levels are 0 to {levels - 1}")
        for times in (1, *self.width_multipliers):
            if self.width * times % self.norm_groups:
                raise ValueError(
                    f"norm_groups: {self.norm_groups} does not divide {self.width * times} "
                    "channels; take a divisor of width"
                )
        return self

    def grid(self, resolution: int) -> tuple[int, int]:
        """Every level but the last halves the resolution: 16 px per token by default."""
        return square_grid(resolution, 2 ** (len(self.width_multipliers) - 1))

    def num_params(self) -> int:
        """Encoder, decoder and codebook."""
        return vqgan_params(self)

    def encode_bytes(self, resolution: int) -> int:
        """Six fp32 maps of the first level's channels."""
        return 6 * 4 * self.width * self.width_multipliers[0] * resolution**2

    def build(self) -> Tokenizer:
        """Make the VQGAN."""
        from toto.tokenizers.vqgan import Vqgan

        return Vqgan(self)


@TOKENIZERS.register("patch")
class PatchConfig(TokenizerConfig):
    """Patches of pixels in; a model that predicts patches regresses normalised ones (MAE, AIM).

    Targets are normalised by the mean and variance of each patch (He et al. 2022) whatever
    `input_norm` says.
    """

    unrecorded: ClassVar[Mapping[str, object]] = {"input_norm": "patch"}

    output: ClassVar[Literal["codes", "patches"]] = "patches"

    identity_fields: ClassVar[frozenset[str]] = frozenset({"patch_size", "input_norm"})

    patch_size: PositiveInt = Field(16, description="side of a patch in pixels")
    input_norm: Literal["imagenet", "image", "patch"] = Field(
        "imagenet",
        description="what normalises the pixels that a model takes in: ImageNet's mean and std of "
        "R, G and B, as in MAE and AIM; the mean and std of each image; or of each patch, which "
        "hides brightness, contrast and colour, as runs of toto before this setting did",
    )

    @property
    def codebook_size(self) -> int:
        """Patches are continuous: no codebook."""
        return 0

    def identity(self, exclude: Set[str] = frozenset()) -> dict[str, Any]:
        """Return what defines the patches.

        Runs older than `input_norm` normalised inputs by the patch: `input_norm: patch` has the
        identity that they recorded, and every other value has another one.
        """
        older = {"input_norm"} if self.input_norm == "patch" else set()
        return super().identity({*exclude, *older})

    @property
    def inputs(self) -> str:
        """Pixels, and what normalises them."""
        statistics = {
            "imagenet": "ImageNet's mean and std",
            "image": "the mean and std of each image",
            "patch": "the mean and std of each patch: brightness, contrast and colour are hidden",
        }
        return f"pixels, normalised by {statistics[self.input_norm]}"

    @property
    def patch_dim(self) -> int:
        """Values of a patch: p·p·3."""
        return self.patch_size * self.patch_size * 3

    def grid(self, resolution: int) -> tuple[int, int]:
        """One token per patch."""
        return square_grid(resolution, self.patch_size)

    def build(self) -> Tokenizer:
        """Make the patch tokenizer."""
        from toto.tokenizers.patch import PatchTokenizer

        return PatchTokenizer(self)
