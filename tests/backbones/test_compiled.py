"""Blocks are compiled once: all share a graph, and no later step makes another."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing

from toto.backbones.config import BACKBONES
from toto.layers.masks import CAUSAL, Mask, PerImage, Prefix

SIZES = {
    "llama": {"width": 16, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 24},
    "gpt2": {"width": 16, "num_layers": 3, "num_heads": 4, "ffn_dim": 24},
    "mamba": {"width": 16, "num_layers": 3, "state_size": 4},
}
MASKS: list[Mask] = [CAUSAL, Prefix(5), PerImage(4)]
CASES = [("llama", mask) for mask in MASKS] + [("gpt2", CAUSAL), ("mamba", CAUSAL)]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("recomputes", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(("name", "mask"), CASES, ids=str)
def test_steps_after_the_first_compile_nothing(name: str, mask: Mask, recomputes: bool):
    torch.manual_seed(0)
    backbone = BACKBONES.parse({"name": name, **SIZES[name]}).build()
    if recomputes:
        backbone.recompute_activations()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    for block in backbone.blocks:
        block.compile(backend=counter, dynamic=False)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    for _ in range(3):
        x_BLD = torch.randn(2, 13, 16, requires_grad=True)  # as an embedding gives it
        backbone(x_BLD, mask).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert counter.frame_count == 1
