from __future__ import annotations

import pytest
import torch

from toto.backbones.base import Backbone
from toto.backbones.config import BackboneConfig, Gpt2Config, LlamaConfig, MambaConfig
from toto.layers.masks import CAUSAL, FULL, Mask, PerImage, Prefix

LLAMA = LlamaConfig(width=24, num_layers=3, num_heads=4, num_kv_heads=2, ffn_dim=40)
GPT2 = Gpt2Config(width=24, num_layers=3, num_heads=4, ffn_dim=40)
MAMBA = MambaConfig(width=24, num_layers=3, state_size=5)
FAMILIES = [LLAMA, GPT2, MAMBA]
TOKENS = 6
LENGTH = 1 + 3 * TOKENS


@pytest.fixture(params=FAMILIES, ids=lambda config: config.registered_name)
def config(request: pytest.FixtureRequest) -> BackboneConfig:
    return request.param


def built(config: BackboneConfig) -> Backbone:
    torch.manual_seed(0)
    backbone = config.build().eval()
    for parameter in backbone.parameters():  # larger than at the start: blocks must matter
        parameter.data += 0.1 * torch.randn_like(parameter)
    return backbone


def masks_of(config: BackboneConfig) -> list[Mask]:
    known = {"causal": CAUSAL, "prefix": Prefix(1 + TOKENS), "per_image": PerImage(TOKENS)}
    return [mask for name, mask in known.items() if name in config.masks]


@torch.no_grad()
@pytest.mark.parametrize("cuts", [(), (1,), (3,), (2, 5)], ids=str)
def test_cached_steps_equal_the_full_pass(config: BackboneConfig, cuts: tuple[int, ...]):
    backbone = built(config)
    x_BLD = torch.randn(2, LENGTH, config.width)
    for mask in masks_of(config):
        whole = backbone(x_BLD, mask)
        prompt = 1 + TOKENS
        ends = [prompt, *(prompt + cut for cut in cuts), *range(prompt + 6, LENGTH + 1)]
        cache, plain = backbone.new_cache(LENGTH, mask), Backbone.new_cache(backbone, LENGTH, mask)
        begin = 0
        for end in ends:
            new_BLD = x_BLD[:, begin:end]
            out_BLD = backbone.extend(new_BLD, cache)
            torch.testing.assert_close(out_BLD, whole[:, begin:end], atol=1e-5, rtol=1e-4)
            slow_BLD = Backbone.extend(backbone, new_BLD, plain)
            torch.testing.assert_close(out_BLD, slow_BLD, atol=1e-5, rtol=1e-4)
            begin = end
        assert cache.filled == plain.filled == LENGTH


def test_full_attention_has_no_cache(config: BackboneConfig):
    with pytest.raises(ValueError, match="full attention"):
        built(config).new_cache(LENGTH, FULL)


@torch.no_grad()
def test_more_positions_than_the_cache_holds_are_refused():
    llama = built(LLAMA)
    cache = llama.new_cache(4)
    llama.extend(torch.randn(1, 4, LLAMA.width), cache)
    with pytest.raises(ValueError, match="5 positions, and the cache holds 4"):
        llama.extend(torch.randn(1, 1, LLAMA.width), cache)


def test_recomputed_activations_change_no_gradient(config: BackboneConfig):
    x_BLD = torch.randn(2, LENGTH, config.width)
    gradients = []
    for recompute in (False, True):
        backbone = built(config).train()
        if recompute:
            backbone.recompute_activations()
        backbone(x_BLD).square().sum().backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, kept)


@torch.no_grad()
def test_mamba_keeps_any_number_of_positions_in_the_same_memory():
    mamba = built(MAMBA)
    cache = mamba.new_cache(1)
    x_BLD = torch.randn(2, 9, MAMBA.width)
    sizes = set()
    for t in range(9):
        out_BLD = mamba.extend(x_BLD[:, t : t + 1], cache)
        sizes.add(sum(k.state_BES.numel() + k.inputs._kept_BLE.numel() for k in cache.kept))
    torch.testing.assert_close(out_BLD, mamba(x_BLD)[:, -1:], atol=1e-5, rtol=1e-4)
    assert len(sizes) == 1


@torch.no_grad()
def test_another_batch_than_the_cache_holds_is_refused():
    llama = built(LLAMA)
    cache = llama.new_cache(4)
    llama.extend(torch.randn(2, 2, LLAMA.width), cache)
    with pytest.raises(ValueError, match="a batch of 1, and the cache holds one of 2"):
        llama.extend(torch.randn(1, 1, LLAMA.width), cache)
