"""The contract of a pooling head."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from toto.errors import UserError
from toto.registry import Implementation

__all__ = ["Head", "head_size"]


class Head(nn.Module, Implementation):
    """Pools the features of a sequence into one vector."""

    @abstractmethod
    def forward(self, features_BLD: Tensor, valid_BL: Tensor | None = None) -> Tensor:
        """`BLD` → `BD`; where `valid_BL` (bool) is False, a token takes no part."""


def head_size(name: str, num_heads: int, width: int) -> int:
    """K of the heads of a pooling.

    Raises:
        UserError: the width does not divide by their number; `name` is the pooling's.
    """
    if width % num_heads:
        raise UserError(
            f"head {name}: num_heads {num_heads} does not divide the features' width {width}; "
            "choose one of its divisors"
        )
    return width // num_heads
