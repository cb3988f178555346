"""What a recipe says of a pooling head. No torch here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveInt

from toto.registry import Component, Registry

if TYPE_CHECKING:
    from toto.heads.base import Head

__all__ = ["HEADS", "AttentionConfig", "AverageConfig", "CrossAttentionConfig", "HeadConfig"]

HEADS: Registry[HeadConfig] = Registry("head", builtins="toto.heads.config")


class HeadConfig(Component, ABC):
    """Base of every pooling head's Config: `[B, L, D]` → `[B, D]`; a linear classifier follows.

    Attributes:
        normalises: where a probe's BatchNorm without affine goes when its bank has one
            (`batch_norm`): on the `tokens` in front of the head, over all tokens of a batch, or on
            the `pooled` vector behind it, over the samples of a batch.
    """

    normalises: ClassVar[Literal["tokens", "pooled"]] = "tokens"

    @abstractmethod
    def num_params(self, width: int) -> int:
        """Parameters of the pooling for features of that width, without the classifier."""

    @abstractmethod
    def build(self, width: int) -> Head:
        """Make the head for features of that width."""

    @property
    def label(self) -> str:
        """The head's name, with those of its options that are not the default."""
        options = self.model_dump(mode="json", exclude_defaults=True)
        name = str(options.pop("name"))
        if not options:
            return name
        return f"{name}({', '.join(f'{key}={value}' for key, value in options.items())})"


@HEADS.register("average")
class AverageConfig(HeadConfig):
    """The mean over all tokens (paper §3.5).

    The norm is that of MAE's linear probing (facebookresearch/mae, main_linprobe.py): in front of
    the classifier, on the pooled vector. Normalised tokens would have a mean that varies far less
    than 1 between samples, and the probe would underfit.
    """

    normalises = "pooled"

    def num_params(self, width: int) -> int:
        """Nothing to learn."""
        return 0

    def build(self, width: int) -> Head:
        """Make the average pooling."""
        from toto.heads.average import AveragePooling

        return AveragePooling(self, width)


@HEADS.register("attention")
class AttentionConfig(HeadConfig):
    """One learned query attends to all tokens through learned W_k and W_v (paper §3.5, Table 5).

    The norm is that of AIM's attentive probe (apple/ml-aim, AttentionPoolingClassifier): on the
    tokens.
    """

    identity_fields: ClassVar[frozenset[str]] = frozenset({"num_heads"})

    num_heads: PositiveInt = Field(1, description="attention heads; they divide the width")

    def num_params(self, width: int) -> int:
        """W_k, W_v and the query."""
        return 2 * width**2 + width

    def build(self, width: int) -> Head:
        """Make the attention pooling."""
        from toto.heads.attention import AttentionPooling

        return AttentionPooling(self, width)


@HEADS.register("cross_attention")
class CrossAttentionConfig(HeadConfig):
    """One learned query, cross-attention and an MLP, both residual (paper §A.7, Table 16)."""

    identity_fields: ClassVar[frozenset[str]] = frozenset({"num_heads", "mlp_ratio"})

    num_heads: PositiveInt = Field(1, description="attention heads; they divide the width")
    mlp_ratio: PositiveInt = Field(4, description="hidden values of the MLP, over the width")

    def num_params(self, width: int) -> int:
        """The query, three matrices of the attention, two of the MLP, and two norms."""
        attention = 3 * width**2 + 2 * width
        mlp = 2 * self.mlp_ratio * width**2 + (self.mlp_ratio + 1) * width
        return width + attention + mlp + 4 * width

    def build(self, width: int) -> Head:
        """Make the cross-attention pooling."""
        from toto.heads.cross_attention import CrossAttentionPooling

        return CrossAttentionPooling(self, width)
