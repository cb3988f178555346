"""Causal self-attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from toto.layers.attention_cpu import CpuAttention, kernel, kernel_is_supported
from toto.layers.rope import apply_rope

if TYPE_CHECKING:
    from toto.layers.rope import Rotation

__all__ = ["CausalAttention", "causal_attention", "fastest_attention"]

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Query, key and value `BNLK` → the values mixed, `BNLK`; position t reads 0..t."""


def causal_attention(query_BNLK: Tensor, key_BNLK: Tensor, value_BNLK: Tensor) -> Tensor:
    """Torch's own, the plain path."""
    return scaled_dot_product_attention(query_BNLK, key_BNLK, value_BNLK, is_causal=True)


def fastest_attention() -> Attend:
    """The fastest path of this machine; the first call may run the C++ compiler for seconds."""
    return _cpu_attention if kernel_is_supported() and kernel() else causal_attention


def _cpu_attention(query_BNLK: Tensor, key_BNLK: Tensor, value_BNLK: Tensor) -> Tensor:
    if query_BNLK.dtype == torch.bfloat16 and query_BNLK.device.type == "cpu":
        mixed_BNLK: Tensor
        mixed_BNLK = CpuAttention.apply(query_BNLK, key_BNLK, value_BNLK)  # type: ignore[no-untyped-call]
        return mixed_BNLK
    return causal_attention(query_BNLK, key_BNLK, value_BNLK)


class CausalAttention(nn.Module):
    """Multi-head causal self-attention with rotary positions and no biases.

    Query, key and value are one product: fewer, larger products and one gradient of the input.

    Args:
        width: D.
        num_heads: N; K = D / N.
    """

    attend: Attend

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.attend = causal_attention

    def forward(self, x_BLD: Tensor, rotation: Rotation) -> Tensor:
        """`BLD` → `BLD`; position t reads positions 0..t."""
        qkv_BL3NK = self.query_key_value(x_BLD).unflatten(-1, (3, self.num_heads, -1))
        query_key_BL2NK = apply_rope(qkv_BL3NK[:, :, :2], rotation)
        query_BNLK, key_BNLK = query_key_BL2NK.permute(2, 0, 3, 1, 4).unbind(0)
        value_BNLK = qkv_BL3NK[:, :, 2].transpose(1, 2)
        mixed_BNLK = self.attend(query_BNLK, key_BNLK, value_BNLK)
        out_BLD: Tensor = self.output(mixed_BNLK.transpose(1, 2).flatten(2))
        return out_BLD
