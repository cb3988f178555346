"""What a recipe says of a backbone, and the sizes of the published presets. No torch here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from toto.backbones.memory import BlockMemory, Pass, gpt2_block, llama_block, mamba_block
from toto.registry import Component, Config, Registry, nearest

if TYPE_CHECKING:
    from toto.backbones.base import Backbone
    from toto.layers.masks import Mask
    from toto.sequence import SequenceLayout

__all__ = [
    "BACKBONES",
    "GPT2_PRESETS",
    "LLAMA_PRESETS",
    "MAMBA_PRESETS",
    "PATCH_MLP_RATIO",
    "BackboneConfig",
    "Gpt2Config",
    "LlamaConfig",
    "MambaConfig",
    "MaskConfig",
    "MaskName",
]

BACKBONES: Registry[BackboneConfig] = Registry("backbone", builtins="toto.backbones.config")

MaskName = Literal["causal", "prefix", "full", "per_image"]

PATCH_MLP_RATIO = 4
"""Hidden values of the MLP that reads patches out, over the width."""


class MaskConfig(Config):
    """Which positions of a sequence each position reads.

    `causal`: those before it. `prefix`: likewise, but the first `frames` frames read each other and
    are not predicted. `per_image`: those before it in its own frame, and the start. `full`: all, so
    that nothing is left to predict; for fine-tuning on labels (paper §A.2).
    """

    identity_fields: ClassVar[frozenset[str]] = frozenset({"name", "frames"})

    name: MaskName = Field("causal", description="which mask")
    frames: PositiveInt | None = Field(None, description="of the prefix")

    @model_validator(mode="after")
    def _check_frames(self) -> MaskConfig:
        if (self.name == "prefix") != (self.frames is not None):
            raise ValueError("`frames` is the length of `name: prefix`, and goes with it alone")
        return self

    def build(self, layout: SequenceLayout) -> Mask:
        """The mask of sequences of that layout."""
        from toto.layers.masks import CAUSAL, FULL, PerImage, Prefix

        if self.frames is not None:
            return Prefix(1 + self.frames * layout.tokens_per_frame)
        if self.name == "per_image":
            return PerImage(layout.tokens_per_frame)
        return FULL if self.name == "full" else CAUSAL


class BackboneConfig(Component, ABC):
    """Base of every backbone's Config: `[B, L, D]` in, `[B, L, D]` out, causal."""

    identity_fields: ClassVar[frozenset[str]] = frozenset(
        {"tie_embeddings", "patch_readout", "mup_base_width"}
    )

    width: PositiveInt = Field(description="D, the size of every token's vector")
    num_layers: PositiveInt = Field(description="number of blocks")
    tie_embeddings: bool = Field(
        True, description="the readout shares the embedding's matrix; patch inputs have none"
    )
    patch_readout: Literal["linear", "mlp"] = Field(
        "linear",
        description="what makes the next patch of a vector: a matrix, or an MLP of 4 · width",
    )

    mup_base_width: PositiveInt | None = Field(
        None,
        description="the width from which µP carries learning rates to others; none: no µP",
    )

    masks: ClassVar[tuple[MaskName, ...]] = ("causal",)
    """The masks that the backbone can work under."""

    unbounded_context: ClassVar[bool] = False
    """Whether its cache holds any number of positions, so that nothing is dropped to go on."""

    scale_with_width: ClassVar[tuple[str, ...]] = ()
    """Fields that `at_width` changes in proportion."""

    changed_by_finetuning: ClassVar[frozenset[str]] = frozenset()
    """Fields that may differ from the parent's in a run that starts from its weights (`init_from`).

    All others decide what the weights compute, whether they show in shapes or not.
    """

    presets: ClassVar[Mapping[str, Mapping[str, int | bool]]] = {}
    """Published sizes by the name that `preset` gives them in a recipe."""

    @property
    def width_ratio(self) -> float:
        """Under µP the width over its base, m; else 1."""
        return 1.0 if self.mup_base_width is None else self.width / self.mup_base_width

    def at_width(self, width: int) -> BackboneConfig:
        """The same backbone at another width; inner sizes keep their ratio to it.

        Raises:
            ValueError: the width does not go with the other sizes.
        """
        changed = {key: getattr(self, key) * width // self.width for key in self.scale_with_width}
        return type(self).model_validate(self.model_dump() | changed | {"width": width})

    @abstractmethod
    def num_params(self) -> int:
        """Parameters of the blocks and the last norm, without embedding and readout."""

    @abstractmethod
    def forward_macs(self, length: int) -> int:
        """Multiply-accumulates of one sequence of `length` through the blocks, forward."""

    def elementwise_macs(self, length: int) -> int:
        """Return how many of `forward_macs(length)` are in no matrix product; by default none.

        `toto check` compares the others with torch's FLOP counter, which sees products alone.
        """
        return 0

    def block_memory(self, one: Pass) -> BlockMemory | None:
        """What a block keeps of a micro-batch for its backward pass; None where nobody counted."""
        return None

    @abstractmethod
    def build(self) -> Backbone:
        """Make the backbone, freshly initialised."""


# Table 1 of the paper. ffn_dim 3072, 4096 and 5632 with tied embeddings and full heads are the only
# sizes that give its parameter counts, and Table 4's compute confirms large. a1 to a6 are Table 15:
# one key-value head, ffn_dim of 16/3 · width rounded up to eights and an untied readout of 1024
# codes give every digit that it prints.
LLAMA_PRESETS: dict[str, dict[str, int | bool]] = {
    "tiny": {"width": 64, "num_layers": 2, "num_heads": 2, "ffn_dim": 192},
    "small": {"width": 192, "num_layers": 6, "num_heads": 6, "ffn_dim": 512},
    "base": {"width": 768, "num_layers": 12, "num_heads": 12, "ffn_dim": 3072},
    "large": {"width": 1024, "num_layers": 16, "num_heads": 16, "ffn_dim": 4096},
    "1b": {"width": 2048, "num_layers": 22, "num_heads": 16, "ffn_dim": 5632},
} | {
    name: {
        "width": width,
        "num_layers": num_layers,
        "num_heads": 16,
        "num_kv_heads": 1,
        "ffn_dim": ffn_dim,
        "tie_embeddings": False,
    }
    for name, width, num_layers, ffn_dim in (
        ("a1", 256, 12, 1368),
        ("a2", 512, 16, 2736),
        ("a3", 768, 20, 4096),
        ("a4", 1024, 24, 5464),
        ("a5", 1536, 28, 8192),
        ("a6", 1792, 32, 9560),
    )
}


@BACKBONES.register("llama")
class LlamaConfig(BackboneConfig):
    """LLaMA (Touvron et al. 2023): pre-norm RMSNorm, SwiGLU, RoPE, no biases.

    `preset` fills in the sizes of a published model; a field beside it replaces the preset's value.
    """

    masks: ClassVar[tuple[MaskName, ...]] = ("causal", "prefix", "full", "per_image")
    scale_with_width: ClassVar[tuple[str, ...]] = ("ffn_dim",)
    identity_fields: ClassVar[frozenset[str]] = frozenset({"rope_base", "norm_eps"})
    changed_by_finetuning: ClassVar[frozenset[str]] = frozenset({"rope_base"})
    presets: ClassVar[Mapping[str, Mapping[str, int | bool]]] = LLAMA_PRESETS

    num_heads: PositiveInt = Field(description="N attention heads; width / num_heads is K")
    num_kv_heads: PositiveInt = Field(
        description="key-value heads, a divisor of num_heads; as many as those unless given"
    )
    ffn_dim: PositiveInt = Field(description="hidden size of the SwiGLU")
    rope_base: PositiveFloat = Field(
        10_000.0, description="10,000 in pre-training, 50,000 for 32×32"
    )
    norm_eps: PositiveFloat = Field(1e-5, description="added to the variance in every norm")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        data = with_preset("llama", LLAMA_PRESETS, data)
        if isinstance(data, dict) and "num_heads" in data:
            return {"num_kv_heads": data["num_heads"], **data}
        return data

    @model_validator(mode="after")
    def _check_heads(self) -> LlamaConfig:
        check_heads(self.width, self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} does not divide by num_kv_heads {self.num_kv_heads}; "
                "choose num_kv_heads among its divisors"
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

    @property
    def matrix_params(self) -> int:
        """Of one block: query and output, key and value, and three matrices of the SwiGLU."""
        kv_width = self.num_kv_heads * self.head_dim
        return 2 * self.width * (self.width + kv_width) + 3 * self.width * self.ffn_dim

    def num_params(self) -> int:
        """The matrices and two norms a block, and the last norm."""
        return self.num_layers * (self.matrix_params + 2 * self.width) + self.width

    def forward_macs(self, length: int) -> int:
        """Products of all matrices, and scores and values over the causal half."""
        return self.num_layers * length * (self.matrix_params + causal_macs(self.width, length))

    def block_memory(self, one: Pass) -> BlockMemory:
        """See `memory.llama_block`."""
        return llama_block(self, one)

    def build(self) -> Backbone:
        """Make the LLaMA."""
        from toto.backbones.llama import Llama

        return Llama(self)


# The paper names no layers: 22 of width 1024 are 285.5 M parameters with tied embeddings, and its
# Table 6 says 280 M. tiny and small are as wide and deep as LLaMA's.
GPT2_PRESETS: dict[str, dict[str, int | bool]] = {
    "tiny": {"width": 64, "num_layers": 2, "num_heads": 2, "ffn_dim": 256},
    "small": {"width": 192, "num_layers": 6, "num_heads": 6, "ffn_dim": 768},
    "280m": {"width": 1024, "num_layers": 22, "num_heads": 16, "ffn_dim": 4096},
}


@BACKBONES.register("gpt2")
class Gpt2Config(BackboneConfig):
    """GPT-2 (Radford et al. 2019): pre-norm LayerNorm, GELU, biases, fixed sine-cosine positions.

    `preset` fills in the sizes of a published model; a field beside it replaces the preset's value.
    """

    masks: ClassVar[tuple[MaskName, ...]] = ("causal", "prefix", "full", "per_image")
    scale_with_width: ClassVar[tuple[str, ...]] = ("ffn_dim",)
    identity_fields: ClassVar[frozenset[str]] = frozenset({"position_scale", "norm_eps"})
    presets: ClassVar[Mapping[str, Mapping[str, int | bool]]] = GPT2_PRESETS

    num_heads: PositiveInt = Field(description="N attention heads; width / num_heads is K")
    ffn_dim: PositiveInt = Field(description="hidden size of the MLP")
    position_scale: PositiveFloat = Field(
        0.02,
        description="amplitude of the positions that are added to the embedding, whose deviation "
        "is 0.02 too: at 1 they drown it (docs/records/table6_small.md)",
    )
    norm_eps: PositiveFloat = Field(1e-5, description="added to the variance in every norm")

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, data: Any) -> Any:
        return with_preset("gpt2", GPT2_PRESETS, data)

    @model_validator(mode="after")
    def _check_sizes(self) -> Gpt2Config:
        check_heads(self.width, self.num_heads)
        if self.width % 2:
            raise ValueError(f"width {self.width} is odd, and positions are sine and cosine pairs")
        return self

    @property
    def matrix_params(self) -> int:
        """Of one block: query, key, value, output, and two matrices of the MLP."""
        return 4 * self.width**2 + 2 * self.width * self.ffn_dim

    def num_params(self) -> int:
        """Matrices with biases and two norms a block, and the last norm."""
        vectors = 9 * self.width + self.ffn_dim
        return self.num_layers * (self.matrix_params + vectors) + 2 * self.width

    def forward_macs(self, length: int) -> int:
        """Products of all matrices, and scores and values over the causal half."""
        return self.num_layers * length * (self.matrix_params + causal_macs(self.width, length))

    def block_memory(self, one: Pass) -> BlockMemory:
        """See `memory.gpt2_block`."""
        return gpt2_block(self, one)

    def build(self) -> Backbone:
        """Make the GPT-2."""
        from toto.backbones.gpt2 import Gpt2

        return Gpt2(self)


# The paper names no layers: 42 of width 1024 are 288.4 M parameters with tied embeddings, and its
# Table 6 says 290 M. tiny and small have about the parameters of LLaMA's.
MAMBA_PRESETS: dict[str, dict[str, int | bool]] = {
    "tiny": {"width": 64, "num_layers": 3},
    "small": {"width": 192, "num_layers": 10},
    "290m": {"width": 1024, "num_layers": 42},
}


@BACKBONES.register("mamba")
class MambaConfig(BackboneConfig):
    """Mamba (Gu & Dao 2023): pre-norm RMSNorm, a selective scan in every block, no attention.

    `preset` fills in the sizes of a published model; a field beside it replaces the preset's value.
    """

    unbounded_context: ClassVar[bool] = True
    scale_with_width: ClassVar[tuple[str, ...]] = ("dt_rank",)
    identity_fields: ClassVar[frozenset[str]] = frozenset(
        {"state_size", "conv_kernel", "expand", "norm_eps"}
    )

    presets: ClassVar[Mapping[str, Mapping[str, int | bool]]] = MAMBA_PRESETS

    state_size: PositiveInt = Field(16, description="S, the states of each channel")
    conv_kernel: PositiveInt = Field(4, description="positions that the convolution reads")
    expand: PositiveInt = Field(2, description="channels of the scan, over width")
    dt_rank: PositiveInt = Field(
        description="R, of the matrix that makes step sizes; width / 16 rounded up unless given"
    )
    norm_eps: PositiveFloat = Field(1e-5, description="added to the variance in every norm")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        data = with_preset("mamba", MAMBA_PRESETS, data)
        if isinstance(data, dict) and isinstance(data.get("width"), int):
            return {"dt_rank": -(-data["width"] // 16), **data}
        return data

    @property
    def inner_width(self) -> int:
        """E, the channels of the scan."""
        return self.expand * self.width

    @property
    def matrix_params(self) -> int:
        """Of one block: in and out, what makes b, c and the step's rank, and the step's own."""
        parts = self.dt_rank + 2 * self.state_size
        return self.inner_width * (3 * self.width + parts + self.dt_rank)

    def num_params(self) -> int:
        """Matrices and a norm a block, of each channel the convolution, rates, two biases and skip.

        And the last norm.
        """
        channel = self.conv_kernel + self.state_size + 3
        block = self.matrix_params + self.inner_width * channel + self.width
        return self.num_layers * block + self.width

    def forward_macs(self, length: int) -> int:
        """Products of all matrices, the convolution, and the scan."""
        return self.num_layers * length * self.matrix_params + self.elementwise_macs(length)

    def elementwise_macs(self, length: int) -> int:
        """Return those of the convolution and the scan.

        A state costs four multiplications: the decay's exponent, decay, input and output.
        """
        channel = self.conv_kernel + 4 * self.state_size
        return self.num_layers * length * self.inner_width * channel

    def block_memory(self, one: Pass) -> BlockMemory:
        """See `memory.mamba_block`."""
        return mamba_block(self, one)

    def build(self) -> Backbone:
        """Make the Mamba."""
        from toto.backbones.mamba import Mamba

        return Mamba(self)


def with_preset(family: str, presets: dict[str, dict[str, int | bool]], data: Any) -> Any:
    """A mapping whose `preset` is replaced by the preset's values, given ones kept.

    Raises:
        ValueError: there is no such preset; the message names the nearest.
    """
    if not isinstance(data, dict) or "preset" not in data:
        return data
    preset = data["preset"]
    if not isinstance(preset, str) or preset not in presets:
        guess = nearest(str(preset), list(presets))
        hint = f" Did you mean {guess!r}?" if guess else ""
        raise ValueError(f"unknown preset {preset!r}; {family} has {', '.join(presets)}.{hint}")
    given = {key: value for key, value in data.items() if key != "preset"}
    return {**presets[preset], **given}


def check_heads(width: int, num_heads: int) -> None:
    """Heads share the width evenly.

    Raises:
        ValueError: they do not.
    """
    if width % num_heads:
        raise ValueError(
            f"width {width} does not divide by num_heads {num_heads}; "
            "choose num_heads among its divisors"
        )


def causal_macs(width: int, length: int) -> int:
    """Of scores and values, a position, in the mean over the causal half of the keys."""
    return 2 * width * (length + 1) // 2
