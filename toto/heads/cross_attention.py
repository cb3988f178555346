"""One learned query, cross-attention and an MLP, both residual (paper §A.7, Table 16)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from toto.heads.attention import attend
from toto.heads.base import Head, head_size

if TYPE_CHECKING:
    from toto.heads.config import CrossAttentionConfig

__all__ = ["CrossAttentionPooling"]

INIT_STD = 0.02


class CrossAttentionPooling(Head):
    """`y = q + attention(q, norm(x))`, then `y + mlp(norm(y))`.

    The paper names cross-attention and MLP alone; their shape is that of V-JEPA's attentive probe
    (facebookresearch/jepa, src/models/attentive_pooler.py): LayerNorms, biases, no output matrix,
    all matrices from a truncated N(0, 0.02²), the last one over √2. As in `AttentionPooling`, keys
    and values of single tokens are never made: the norm's gain and shift move into the matrices,
    and a bias of the keys, which would shift all scores of a sample alike, has no effect and is
    left out.

    Raises:
        UserError: the width does not divide by the number of heads.
    """

    def __init__(self, config: CrossAttentionConfig, width: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.head_dim = head_size("cross_attention", self.num_heads, width)
        hidden = config.mlp_ratio * width
        self.query = nn.Parameter(torch.empty(width))
        self.token_norm = nn.LayerNorm(width)
        self.to_query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_out = nn.Linear(hidden, width)
        nn.init.trunc_normal_(self.query, std=INIT_STD)
        for linear in (self.to_query, self.key, self.value, self.mlp_in, self.mlp_out):
            nn.init.trunc_normal_(linear.weight, std=INIT_STD)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        with torch.no_grad():
            self.mlp_out.weight.div_(math.sqrt(2))

    def forward(self, features_BLD: Tensor, valid_BL: Tensor | None = None) -> Tensor:
        """`BLD` → `BD`; every sample needs at least one valid token."""
        norm = self.token_norm
        normed_BLD = nn.functional.layer_norm(features_BLD, norm.normalized_shape, eps=norm.eps)
        context_BND = attend(normed_BLD, self._directions_ND() * norm.weight, valid_BL)
        context_BND = context_BND * norm.weight + norm.bias
        pooled_BD = self.query + self._values_BD(context_BND)
        hidden = nn.functional.gelu(self.mlp_in(self.mlp_norm(pooled_BD)))
        out_BD: Tensor = pooled_BD + self.mlp_out(hidden)
        return out_BD

    def _directions_ND(self) -> Tensor:
        query_NK = self.to_query(self.query).view(self.num_heads, self.head_dim)
        key_NKD = self.key.weight.view(*query_NK.shape, -1)
        return torch.einsum("nk,nkd->nd", query_NK, key_NKD) / math.sqrt(query_NK.shape[1])

    def _values_BD(self, context_BND: Tensor) -> Tensor:
        value_NKD = self.value.weight.view(self.num_heads, self.head_dim, -1)
        return torch.einsum("bnd,nkd->bnk", context_BND, value_NKD).flatten(1) + self.value.bias
