"""Self-attention: grouped heads, any mask, and keys and values kept for decoding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from toto.layers.attention_cpu import CpuAttention, kernel, kernel_is_supported
from toto.layers.rope import apply_rope

if TYPE_CHECKING:
    from toto.layers.cache import KeyValues
    from toto.layers.masks import Visibility
    from toto.layers.rope import Rotation

__all__ = ["SelfAttention", "attention", "fastest_attention"]

MUP_SCORE = 8.0

Attend = Callable[[Tensor, Tensor, Tensor, "Visibility"], Tensor]
"""Query `BNQK`, key and value `BGLK` and who reads whom → the values mixed, `BNQK`.

G key-value heads divide N: each serves N / G neighbouring query heads.
"""


def attention(
    query_BNQK: Tensor, key_BGLK: Tensor, value_BGLK: Tensor, visibility: Visibility
) -> Tensor:
    """Torch's own, the plain path: an `Attend`."""
    grouped = query_BNQK.shape[1] != key_BGLK.shape[1]
    if visibility.blocks is not None:
        mixed_BNQK: Tensor = flex_attention(
            query_BNQK, key_BGLK, value_BGLK, block_mask=visibility.blocks, enable_gqa=grouped
        )
        return mixed_BNQK
    return scaled_dot_product_attention(
        query_BNQK,
        key_BGLK,
        value_BGLK,
        attn_mask=visibility.dense_QL,
        is_causal=visibility.causal,
        enable_gqa=grouped,
    )


def fastest_attention() -> Attend:
    """The fastest path of this machine; the first call may run the C++ compiler for seconds."""
    return _cpu_attention if kernel_is_supported() and kernel() else attention


def _cpu_attention(
    query_BNQK: Tensor, key_BGLK: Tensor, value_BGLK: Tensor, visibility: Visibility
) -> Tensor:
    fits = query_BNQK.dtype == torch.bfloat16 and query_BNQK.device.type == "cpu"
    fits &= query_BNQK.shape[-1] % 2 == 0  # the kernel packs the values of a head in pairs
    if fits and visibility.causal and query_BNQK.shape == key_BGLK.shape:
        mixed_BNQK: Tensor
        mixed_BNQK = CpuAttention.apply(query_BNQK, key_BGLK, value_BGLK)  # type: ignore[no-untyped-call]
        return mixed_BNQK
    return attention(query_BNQK, key_BGLK, value_BGLK, visibility)


class SelfAttention(nn.Module):
    """Multi-head self-attention, with rotary positions where it is given a rotation.

    Query, key and value are one product: fewer, larger products and one gradient of the input.

    Args:
        width: D.
        num_heads: N; K = D / N.
        num_kv_heads: G, a divisor of N: one key and value for N / G queries (Ainslie et al. 2023).
        bias: of both products.
        mup: scores are products times 8 / K, as µP has them, not 1 / √K: alike where K is 64.
    """

    attend: Attend

    def __init__(
        self, width: int, num_heads: int, num_kv_heads: int, *, bias: bool, mup: bool = False
    ) -> None:
        super().__init__()
        self.head_dim = width // num_heads
        self.heads = [num_heads, num_kv_heads, num_kv_heads]
        self.query_key_value = nn.Linear(width, sum(self.heads) * self.head_dim, bias=bias)
        self.output = nn.Linear(width, width, bias=bias)
        self.query_gain = MUP_SCORE / math.sqrt(self.head_dim) if mup else 1.0
        self.attend = attention

    def forward(
        self,
        x_BLD: Tensor,
        visibility: Visibility,
        rotation: Rotation | None = None,
        kept: KeyValues | None = None,
    ) -> Tensor:
        """`BLD` → `BLD`.

        Args:
            x_BLD: the positions that read.
            visibility: whom each of them reads.
            rotation: of these positions; None leaves queries and keys as they are.
            kept: keys and values of the positions before, to which theirs are added.
        """
        query_BLNK, key_BLGK, value_BLGK = self._projected(x_BLD, rotation)
        if self.query_gain != 1.0:
            query_BLNK = query_BLNK * self.query_gain
        key_BGLK, value_BGLK = key_BLGK.transpose(1, 2), value_BLGK.transpose(1, 2)
        if kept is not None:
            key_BGLK, value_BGLK = kept.append(key_BGLK, value_BGLK)
        mixed_BNLK = self.attend(query_BLNK.transpose(1, 2), key_BGLK, value_BGLK, visibility)
        out_BLD: Tensor = self.output(mixed_BNLK.transpose(1, 2).flatten(2))
        return out_BLD

    def _projected(self, x_BLD: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        heads_BLHK = self.query_key_value(x_BLD).unflatten(-1, (-1, self.head_dim))
        if rotation is None:
            query, key, value = torch.split(heads_BLHK, self.heads, dim=2)
            return query, key, value
        num_heads, num_kv_heads, _ = self.heads
        turned_BLHK = apply_rope(heads_BLHK[:, :, : num_heads + num_kv_heads], rotation)
        query, key = torch.split(turned_BLHK, [num_heads, num_kv_heads], dim=2)
        return query, key, heads_BLHK[:, :, num_heads + num_kv_heads :]
