"""The contract of a pooling head."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

__all__ = ["Head"]


class Head(nn.Module, ABC):
    """Pools the features of a sequence into one vector."""

    @abstractmethod
    def forward(self, features_BLD: Tensor, valid_BL: Tensor | None = None) -> Tensor:
        """`BLD` → `BD`; where `valid_BL` (bool) is False, a token takes no part."""
