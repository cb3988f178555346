"""The mean over all tokens (paper §3.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toto.heads.base import Head

if TYPE_CHECKING:
    from torch import Tensor

    from toto.heads.config import AverageConfig

__all__ = ["AveragePooling"]


class AveragePooling(Head):
    """The mean over the valid tokens; nothing to learn."""

    def __init__(self, config: AverageConfig, width: int) -> None:
        super().__init__()

    def forward(self, features_BLD: Tensor, valid_BL: Tensor | None = None) -> Tensor:
        """`BLD` → `BD`; every sample needs at least one valid token."""
        if valid_BL is None:
            return features_BLD.mean(1)
        weights_BL = valid_BL.to(features_BLD.dtype)
        total_BD = (features_BLD * weights_BL[..., None]).sum(1)
        return total_BD / weights_BL.sum(1, keepdim=True)
