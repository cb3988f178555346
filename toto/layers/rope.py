"""Rotary position embedding (Su et al. 2021), half-split: entry i turns with entry i + K/2.

Axis letter of this module: P = K/2, the pairs of one head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Rotation", "apply_rope", "rope_rotation"]


class Rotation(NamedTuple):
    """Cosine and sine of every position's angles, fp32 `[L, P]`."""

    cos_LP: Tensor
    sin_LP: Tensor


def rope_rotation(
    length: int, head_dim: int, base: float, device: torch.device, *, first: int = 0
) -> Rotation:
    """Of positions first..length-1: pair i turns by `position · base^(-2i/K)` radians."""
    exponents_P = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    positions_L = torch.arange(first, length, dtype=torch.float32, device=device)
    # The product is pointwise, so autocast leaves it in fp32: bf16 cannot tell position 257 of 256.
    angles_LP = positions_L[:, None] * (1.0 / base**exponents_P)
    return Rotation(angles_LP.cos(), angles_LP.sin())


def apply_rope(x_BLNK: Tensor, rotation: Rotation) -> Tensor:
    """Turn queries or keys `[B, L, ..., K]`, computed in fp32, returned in their dtype."""
    shape = (rotation.cos_LP.shape[0], *[1] * (x_BLNK.ndim - 3), rotation.cos_LP.shape[1])
    cos, sin = rotation.cos_LP.view(shape), rotation.sin_LP.view(shape)
    first, second = x_BLNK.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x_BLNK.dtype)
