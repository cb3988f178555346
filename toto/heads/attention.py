"""One learned query attends to all tokens through learned W_k and W_v (paper §3.5, Table 5)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from toto.heads.base import Head, head_size

if TYPE_CHECKING:
    from toto.heads.config import AttentionConfig

__all__ = ["AttentionPooling", "attend"]


class AttentionPooling(Head):
    """`softmax(q · W_k x / √K) · W_v x`, with one learned query q per head.

    Neither a query nor an output matrix, no biases: the layout of AIM's attentive classifier
    (apple/ml-aim, aim-v1). Keys and values of single tokens are never made. The query is the same
    for all samples, so `q · W_k x = (W_kᵀ q) · x`, and `Σ a W_v x = W_v Σ a x`: the result is the
    same, and the cost of a token falls from 2·D² to 2·D·N products.

    Raises:
        UserError: the width does not divide by the number of heads.
    """

    def __init__(self, config: AttentionConfig, width: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.head_dim = head_size("attention", self.num_heads, width)
        self.query = nn.Parameter(0.02 * torch.randn(width))
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)

    def forward(self, features_BLD: Tensor, valid_BL: Tensor | None = None) -> Tensor:
        """`BLD` → `BD`; every sample needs at least one valid token."""
        return self.values(attend(features_BLD, self.directions(), valid_BL))

    def directions(self) -> Tensor:
        """`W_kᵀ q / √K` of each head, `ND`: the product with a token is the token's score."""
        query_NK = self.query.view(self.num_heads, self.head_dim)
        key_NKD = self.key.weight.view(self.num_heads, self.head_dim, -1)
        return torch.einsum("nk,nkd->nd", query_NK, key_NKD) / math.sqrt(self.head_dim)

    def values(self, context_BND: Tensor) -> Tensor:
        """What `attend` gave for `directions()` → the pooled `BD`."""
        value_NKD = self.value.weight.view(self.num_heads, self.head_dim, -1)
        return torch.einsum("bnd,nkd->bnk", context_BND, value_NKD).flatten(1)


def attend(x_BLD: Tensor, directions_MD: Tensor, valid_BL: Tensor | None = None) -> Tensor:
    """Means of the tokens, each weighted by the softmax of its scores along one direction.

    Args:
        x_BLD: the tokens; taken to the precision of `directions_MD`.
        directions_MD: M directions, of one head or of many.
        valid_BL: bool; where False, a token weighs 0.

    Returns:
        `BMD`.
    """
    x_BLD = x_BLD.to(directions_MD.dtype)
    # A product per sample; one over all samples took a third longer on a CPU.
    scores_BML = torch.bmm(directions_MD.expand(len(x_BLD), -1, -1), x_BLD.mT)
    if valid_BL is not None:
        scores_BML = scores_BML.masked_fill(~valid_BL[:, None], -math.inf)
    return torch.bmm(scores_BML.softmax(-1), x_BLD)
