"""Which positions each position of a sequence reads.

A mask knows nothing of a device or a length; `visibility` turns it into what attention takes.
Position 0 is the start of the sequence, the visual tokens follow (toto/sequence.py).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

__all__ = [
    "CAUSAL",
    "FULL",
    "Causal",
    "Full",
    "Mask",
    "PerImage",
    "Prefix",
    "Visibility",
    "compiled_visibility",
    "plain_visibility",
]


class Visibility(NamedTuple):
    """A mask over given positions, in the form that attention takes; at most one field is set.

    All unset, every query reads every key.

    Attributes:
        causal: query t reads keys 0..t, as many queries as keys.
        dense_QL: bool, True where query row Q reads key L.
        blocks: the same for FlexAttention, which skips what nobody reads.
    """

    causal: bool = False
    dense_QL: Tensor | None = None
    blocks: BlockMask | None = None


class Mask(ABC):
    """A rule of who reads whom."""

    @abstractmethod
    def reads(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether position `query` reads position `key`: integer tensors that broadcast → bool."""

    def visibility(self, first: int, length: int, device: torch.device) -> Visibility:
        """For queries at first..length-1 and keys at 0..length-1: the plain path."""
        return Visibility(dense_QL=self.dense(first, length, device))

    def dense(self, first: int, length: int, device: torch.device) -> Tensor:
        """Bool, queries first..length-1 by keys 0..length-1."""
        positions = torch.arange(length, device=device)
        return self.reads(positions[first:, None], positions[None])

    @property
    def num_given(self) -> int:
        """Visual tokens that are read before they are predicted, so that no loss is taken there."""
        return 0

    def blocks(self, length: int, device: torch.device) -> BlockMask:
        """The same for FlexAttention: queries and keys 0..length-1."""
        return create_block_mask(
            lambda batch, head, query, key: self.reads(query, key),
            B=None,
            H=None,
            Q_LEN=length,
            KV_LEN=length,
            device=str(device),
        )


@dataclass(frozen=True)
class Causal(Mask):
    """Every position reads itself and those before it."""

    def reads(self, query: Tensor, key: Tensor) -> Tensor:
        """See `Mask.reads`."""
        return key <= query

    def visibility(self, first: int, length: int, device: torch.device) -> Visibility:
        """No matrix is made where torch has a kernel of its own."""
        if first == 0:
            return Visibility(causal=True)
        if first == length - 1:
            return Visibility()
        return super().visibility(first, length, device)


@dataclass(frozen=True)
class Full(Mask):
    """Every position reads every position: to fine-tune on labels (paper §A.2), not to predict."""

    def reads(self, query: Tensor, key: Tensor) -> Tensor:
        """See `Mask.reads`."""
        return torch.ones_like(key <= query)

    def visibility(self, first: int, length: int, device: torch.device) -> Visibility:
        """Nothing is hidden."""
        return Visibility()


@dataclass(frozen=True)
class Prefix(Mask):
    """Positions below `length` read each other, those after it read all that came before."""

    length: int

    def reads(self, query: Tensor, key: Tensor) -> Tensor:
        """See `Mask.reads`."""
        return (key <= query) | (key < self.length)

    def visibility(self, first: int, length: int, device: torch.device) -> Visibility:
        """See `Mask.visibility`; a sequence that is no longer than the prefix is all prefix.

        Raises:
            ValueError: the prefix is cut in two.
        """
        if 0 < first < self.length:
            raise ValueError(
                f"a prefix of {self.length} positions is read as a whole, not {first}..{length - 1}"
            )
        if first == length - 1 or length <= self.length:
            return Visibility()
        return super().visibility(first, length, device)

    @property
    def num_given(self) -> int:
        """All of the prefix but the start."""
        return self.length - 1


@dataclass(frozen=True)
class PerImage(Mask):
    """Causal within each image of `tokens` positions; position 0, the start, is read by all."""

    tokens: int

    def reads(self, query: Tensor, key: Tensor) -> Tensor:
        """See `Mask.reads`."""
        same = (query - 1) // self.tokens == (key - 1) // self.tokens
        return (key <= query) & (same | (key == 0))


CAUSAL = Causal()
FULL = Full()


def plain_visibility(mask: Mask, first: int, length: int, device: torch.device) -> Visibility:
    """What the mask itself says."""
    return mask.visibility(first, length, device)


def compiled_visibility(mask: Mask, first: int, length: int, device: torch.device) -> Visibility:
    """`Mask.visibility` for compiled blocks: on a GPU FlexAttention skips what nobody reads.

    Not compiled it would hold the scores of all heads, which torch's own attention does not.
    """
    if device.type != "cuda" or first != 0:
        return mask.visibility(first, length, device)
    return _of_whole_sequences(mask, length, device)


@functools.lru_cache(maxsize=4)
def _of_whole_sequences(mask: Mask, length: int, device: torch.device) -> Visibility:
    """Made once, not in every step."""
    seen = mask.visibility(0, length, device)
    return seen if seen.dense_QL is None else Visibility(blocks=mask.blocks(length, device))
