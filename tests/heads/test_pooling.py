from __future__ import annotations

import math

import pytest
import torch

from toto.errors import UserError
from toto.heads.attention import attend
from toto.heads.config import AttentionConfig, AverageConfig
from toto.testing import check_head

B, L, D = 3, 10, 12


@pytest.fixture
def features_BLD():
    return torch.randn(B, L, D, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def valid_BL():
    return torch.arange(L) < torch.tensor([[10], [6], [1]])


def plain_attention(head, x_BLD, valid_BL=None):
    """The formula as the paper tells it: keys and values of every token, heads apart."""
    key_BLNK = (x_BLD @ head.key.weight.T).unflatten(-1, (head.num_heads, head.head_dim))
    value_BLNK = (x_BLD @ head.value.weight.T).unflatten(-1, (head.num_heads, head.head_dim))
    query_NK = head.query.unflatten(0, (head.num_heads, head.head_dim))
    scores_BNL = torch.einsum("nk,blnk->bnl", query_NK, key_BLNK) / math.sqrt(head.head_dim)
    if valid_BL is not None:
        scores_BNL = scores_BNL.masked_fill(~valid_BL[:, None], float("-inf"))
    return torch.einsum("bnl,blnk->bnk", scores_BNL.softmax(-1), value_BLNK).flatten(1)


def built(num_heads):
    torch.manual_seed(0)
    head = AttentionConfig(num_heads=num_heads).build(D)
    with torch.no_grad():
        head.query.mul_(50)  # far from the near-uniform start
    return head


@pytest.mark.parametrize(
    "config", [AverageConfig(), AttentionConfig(), AttentionConfig(num_heads=4)]
)
def test_contract(config):
    assert check_head(config)


def test_average_is_the_mean(features_BLD):
    pooled = AverageConfig().build(D)(features_BLD)
    torch.testing.assert_close(pooled, features_BLD.sum(1) / L)


def test_average_of_valid_tokens_only(features_BLD, valid_BL):
    pooled = AverageConfig().build(D)(features_BLD, valid_BL)
    plain = torch.stack([x[v].mean(0) for x, v in zip(features_BLD, valid_BL, strict=True)])
    torch.testing.assert_close(pooled, plain)


@pytest.mark.parametrize("num_heads", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_plain_formula_with_gradients(features_BLD, valid_BL, num_heads, masked):
    head = built(num_heads)
    valid = valid_BL if masked else None
    x_BLD = features_BLD.requires_grad_()
    inputs = [x_BLD, *head.parameters()]
    weights_BD = torch.randn(B, D)
    got, want = head(x_BLD, valid), plain_attention(head, x_BLD, valid)
    torch.testing.assert_close(got, want)
    got_grads = torch.autograd.grad((got * weights_BD).sum(), inputs)
    want_grads = torch.autograd.grad((want * weights_BD).sum(), inputs)
    torch.testing.assert_close(got_grads, want_grads)


def test_attention_is_no_average(features_BLD):
    head = built(1)
    average = features_BLD.mean(1) @ head.value.weight.T
    assert not torch.allclose(head(features_BLD), average, atol=1e-2)


def test_content_of_masked_tokens_does_not_matter(features_BLD, valid_BL):
    changed = torch.where(valid_BL[..., None], features_BLD, torch.tensor(1e4))
    for head in (built(4), AverageConfig().build(D)):
        torch.testing.assert_close(head(features_BLD, valid_BL), head(changed, valid_BL))


def test_attend_reads_low_precision_tokens_in_fp32(features_BLD):
    low_BLD = features_BLD.bfloat16()
    directions = torch.randn(2, D)
    assert torch.equal(attend(low_BLD, directions), attend(low_BLD.float(), directions))


def test_parameters_are_key_value_and_one_query():
    shapes = {name: tuple(p.shape) for name, p in built(4).named_parameters()}
    assert shapes == {"query": (D,), "key.weight": (D, D), "value.weight": (D, D)}


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match="num_heads 5 does not divide the features' width 12"):
        AttentionConfig(num_heads=5).build(D)
