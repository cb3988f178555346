from __future__ import annotations

import shutil

import pytest
import torch

from toto.layers import attention_cpu
from toto.layers.attention import SelfAttention, attention, fastest_attention
from toto.layers.attention_cpu import CpuAttention, kernel_is_supported
from toto.layers.masks import Visibility
from toto.layers.rope import rope_rotation

CAUSAL = Visibility(causal=True)

needs_kernel = pytest.mark.skipif(
    not kernel_is_supported() or shutil.which("c++") is None,
    reason="needs a CPU with AMX and a C++ compiler",
)


def exact_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value


def test_plain_attention_is_the_formula():
    query, key, value = torch.randn(3, 2, 4, 9, 8)
    torch.testing.assert_close(
        attention(query, key, value, CAUSAL), exact_attention(query, key, value)
    )


def test_module_is_the_formula_with_turned_queries_and_keys():
    torch.manual_seed(0)
    module, x = SelfAttention(12, 2, 2, bias=False), torch.randn(1, 5, 12)
    rotation = rope_rotation(5, 6, 100.0, x.device)
    parts = module.query_key_value(x).chunk(3, dim=-1)
    query, key, value = (part.unflatten(-1, (2, 6)).transpose(1, 2) for part in parts)
    angles = torch.complex(*rotation)
    query, key = (
        torch.view_as_real(torch.complex(*part.chunk(2, -1)) * angles).transpose(-1, -2).flatten(-2)
        for part in (query, key)
    )
    expected = module.output(exact_attention(query, key, value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(x, CAUSAL, rotation), expected)


@needs_kernel
@pytest.mark.parametrize(
    ("shape", "scale"),
    [
        ((2, 3, 1, 32), 1),
        ((1, 2, 33, 6), 1),
        ((2, 2, 127, 16), 1),
        ((1, 3, 128, 24), 4),
        ((2, 2, 129, 64), 1),
        ((1, 2, 300, 32), 30),
    ],
)
def test_cpu_kernel_equals_the_plain_path_with_gradients(shape, scale):
    torch.manual_seed(0)
    inputs = [scale * torch.randn(shape).transpose(1, 2).contiguous().transpose(1, 2), *[0, 0]]
    inputs[1], inputs[2] = torch.randn(shape), torch.randn(shape)
    upstream = torch.randn(shape).bfloat16()
    found = {}
    for name, path, dtype in (
        ("exact", exact_attention, torch.float64),
        ("plain", lambda *qkv: attention(*qkv, CAUSAL), torch.bfloat16),
        ("ours", CpuAttention.apply, torch.bfloat16),
    ):
        leaves = [x.bfloat16().to(dtype).requires_grad_() for x in inputs]
        out = path(*leaves)
        out.backward(upstream.to(dtype))
        found[name] = [out.detach(), *(leaf.grad for leaf in leaves)]
    for exact, plain, ours in zip(*found.values(), strict=True):
        size = exact.norm() + 1e-3
        distance, allowed = (ours.double() - exact).norm() / size, (plain - exact).norm() / size
        assert distance <= 1.2 * allowed + 1e-3


@needs_kernel
def test_cpu_kernel_is_used_in_bf16_alone_and_is_bitwise_repeatable():
    attend = fastest_attention()
    inputs = [torch.randn(2, 4, 200, 32).requires_grad_() for _ in range(3)]
    assert "CpuAttention" not in type(attend(*inputs, CAUSAL).grad_fn).__name__
    halves = [x.detach().bfloat16().requires_grad_() for x in inputs]
    out = attend(*halves, CAUSAL)
    assert "CpuAttention" in type(out.grad_fn).__name__
    first, second = (torch.autograd.grad(out.sum(), halves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("head_dim", "by_kernel"), [(32, True), (33, False)])
def test_heads_of_an_odd_size_stay_with_torch(monkeypatch, head_dim, by_kernel):
    monkeypatch.setattr("toto.layers.attention.kernel_is_supported", lambda: True)
    monkeypatch.setattr("toto.layers.attention.kernel", lambda: True)
    query, key, value = torch.randn(3, 1, 2, 5, head_dim).bfloat16().requires_grad_().unbind()
    out = fastest_attention()(query, key, value, CAUSAL)
    assert ("CpuAttention" in type(out.grad_fn).__name__) == by_kernel


def test_a_failing_compiler_is_told_and_attention_stays_plain(monkeypatch, tmp_path):
    attention_cpu.kernel.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setattr("toto.layers.attention.kernel_is_supported", lambda: True)
    with pytest.warns(UserWarning, match="without its own kernel"):
        assert fastest_attention() is attention
    assert not list(tmp_path.rglob("*.so"))
    attention_cpu.kernel.cache_clear()
