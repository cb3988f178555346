from __future__ import annotations

import pytest
import torch

from toto.layers import masks
from toto.layers.attention import attention
from toto.layers.masks import (
    CAUSAL,
    FULL,
    Mask,
    PerImage,
    Prefix,
    Visibility,
    compiled_visibility,
)

CPU = torch.device("cpu")
LENGTH = 1 + 3 * 4
MASKS = [CAUSAL, FULL, Prefix(1 + 4), PerImage(4)]


def readable(mask: Mask, query: int) -> set[int]:
    return set(mask.dense(0, LENGTH, CPU)[query].nonzero().flatten().tolist())


def test_who_reads_whom():
    assert readable(CAUSAL, 6) == set(range(7))
    assert readable(FULL, 6) == set(range(LENGTH))
    assert readable(Prefix(5), 0) == readable(Prefix(5), 4) == set(range(5))
    assert readable(Prefix(5), 6) == set(range(7))
    assert readable(PerImage(4), 0) == {0}
    assert readable(PerImage(4), 4) == {0, 1, 2, 3, 4}
    assert readable(PerImage(4), 6) == {0, 5, 6}


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_every_form_of_a_mask_is_the_dense_one_with_gradients(mask: Mask, groups: int):
    torch.manual_seed(0)
    shapes = [(2, 4, LENGTH, 8), (2, groups, LENGTH, 8), (2, groups, LENGTH, 8)]
    inputs = [torch.randn(shape).requires_grad_() for shape in shapes]
    upstream = torch.randn(shapes[0])
    query, key, value = inputs
    scores = query @ key.repeat_interleave(4 // groups, 1).transpose(-1, -2) / 8**0.5
    weights = scores.masked_fill(~mask.dense(0, LENGTH, CPU), float("-inf")).softmax(-1)
    expected = weights @ value.repeat_interleave(4 // groups, 1)
    wanted = [expected, *torch.autograd.grad(expected, inputs, upstream)]
    forms = [
        mask.visibility(0, LENGTH, CPU),
        Visibility(dense_QL=mask.dense(0, LENGTH, CPU)),
    ]
    for visibility in forms:
        out = attention(*inputs, visibility)
        found = [out, *torch.autograd.grad(out, inputs, upstream)]
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_blocks_are_the_dense_mask(mask: Mask):
    torch.manual_seed(0)
    inputs = torch.randn(3, 2, 4, LENGTH, 16).unbind()
    blocks = Visibility(blocks=mask.blocks(LENGTH, CPU))
    dense = Visibility(dense_QL=mask.dense(0, LENGTH, CPU))
    torch.testing.assert_close(attention(*inputs, blocks), attention(*inputs, dense))


@pytest.mark.parametrize(("first", "length"), [(2, 6), (3, 4)])
def test_a_prefix_comes_as_a_whole(first: int, length: int):
    with pytest.raises(ValueError, match="read as a whole"):
        Prefix(5).visibility(first, length, CPU)


@pytest.mark.parametrize("length", [1, 3, 5])
def test_a_sequence_no_longer_than_the_prefix_is_all_prefix(length: int):
    assert Prefix(5).dense(0, length, CPU).all()
    assert Prefix(5).visibility(0, length, CPU) == Visibility()


def test_compiled_blocks_on_a_gpu_get_blocks_once(monkeypatch):
    made = []
    monkeypatch.setattr(Mask, "dense", lambda mask, first, length, device: torch.ones(1))
    monkeypatch.setattr(
        Mask, "blocks", lambda mask, length, device: made.append(length) or "blocks"
    )
    masks._of_whole_sequences.cache_clear()
    cuda = torch.device("cuda")
    seen = [compiled_visibility(PerImage(4), 0, 9, cuda) for _ in range(2)]
    assert seen == [Visibility(blocks="blocks")] * 2
    assert made == [9]
    assert PerImage(4).visibility(0, 9, cuda).blocks is None
    assert compiled_visibility(PerImage(4), 8, 9, cuda).blocks is None
    assert compiled_visibility(PerImage(4), 0, 9, CPU).blocks is None
    assert compiled_visibility(CAUSAL, 0, 9, cuda) == Visibility(causal=True)
    masks._of_whole_sequences.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mask", [Prefix(1 + 64), PerImage(64)], ids=str)
def test_compiled_blocks_are_the_dense_mask_on_a_gpu_with_gradients(mask: Mask):
    torch.manual_seed(0)
    cuda, length = torch.device("cuda"), 1 + 4 * 64
    inputs = [torch.randn(2, 4, length, 32, device=cuda).requires_grad_() for _ in range(3)]
    upstream = torch.randn(2, 4, length, 32, device=cuda)
    found = []
    for attend, visibility in (
        (attention, mask.visibility(0, length, cuda)),
        (torch.compile(attention, dynamic=False), compiled_visibility(mask, 0, length, cuda)),
    ):
        out = attend(*inputs, visibility)
        found.append([out, *torch.autograd.grad(out, inputs, upstream)])
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, atol=2e-2, rtol=2e-2)  # TF32 inside
