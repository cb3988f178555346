"""Root-mean-square normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

__all__ = ["RMSNorm"]


class RMSNorm(nn.Module):
    """`x / rms(x) · gain` over the last axis (Zhang & Sennrich 2019), computed in fp32.

    Args:
        width: D, the size of the last axis.
        eps: added to the mean square.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Any float `[..., D]` → the same shape and dtype."""
        normed_BLD = rms_norm(x_BLD.float(), self.weight.shape, self.weight.float(), self.eps)
        return normed_BLD.to(x_BLD.dtype)
