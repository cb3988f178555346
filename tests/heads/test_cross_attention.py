from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from toto.errors import UserError
from toto.heads.config import CrossAttentionConfig
from toto.testing import check_head

B, L, D = 3, 10, 12


def built(num_heads):
    """A head whose parameters are all far from their start, so that each one matters."""
    torch.manual_seed(0)
    head = CrossAttentionConfig(num_heads=num_heads, mlp_ratio=2).build(D)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) / 2)
    return head


def plain(head, x_BLD, valid_BL=None):
    """By the book: norms, keys and values of every token, torch's own attention."""
    x_BLD = head.token_norm(x_BLD)

    def split(y):
        return y.unflatten(-1, (head.num_heads, -1)).transpose(1, 2)

    mask = None if valid_BL is None else valid_BL[:, None, None]
    pooled_BN1K = nn.functional.scaled_dot_product_attention(
        split(head.to_query(head.query).expand(len(x_BLD), 1, -1)),
        split(head.key(x_BLD)),
        split(head.value(x_BLD)),
        attn_mask=mask,
    )
    pooled_BD = head.query + pooled_BN1K.transpose(1, 2).flatten(1)
    return pooled_BD + head.mlp_out(nn.functional.gelu(head.mlp_in(head.mlp_norm(pooled_BD))))


@pytest.mark.parametrize("config", [CrossAttentionConfig(), CrossAttentionConfig(num_heads=4)])
def test_contract(config):
    assert check_head(config)


@pytest.mark.parametrize("num_heads", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_it_equals_the_plain_block_with_gradients(num_heads, masked):
    head = built(num_heads)
    x_BLD = torch.randn(B, L, D, requires_grad=True)
    valid_BL = torch.arange(L) < torch.tensor([[10], [6], [1]]) if masked else None
    inputs = [x_BLD, *head.parameters()]
    weights_BD = torch.randn(B, D)
    got, want = head(x_BLD, valid_BL), plain(head, x_BLD, valid_BL)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    got_grads = torch.autograd.grad((got * weights_BD).sum(), inputs)
    want_grads = torch.autograd.grad((want * weights_BD).sum(), inputs)
    torch.testing.assert_close(got_grads, want_grads, atol=1e-4, rtol=1e-4)


def test_it_begins_as_v_jepas():
    torch.manual_seed(0)
    head = CrossAttentionConfig().build(256)
    assert head.key.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert head.mlp_out.weight.std().item() == pytest.approx(0.02 / math.sqrt(2), rel=0.05)
    assert head.query.abs().max() > 0
    assert head.value.bias.abs().max() == 0


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match="num_heads 5 does not divide the features' width 12"):
        CrossAttentionConfig(num_heads=5).build(D)
