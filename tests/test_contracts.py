"""The contract of every registered component, and that the checks can fail."""

from __future__ import annotations

import pytest
import torch

from toto.backbones.config import BACKBONES, LlamaConfig
from toto.backbones.llama import Llama
from toto.heads.config import HEADS
from toto.layers.cache import KeyValues
from toto.layers.masks import CAUSAL, FULL, Causal, PerImage, Prefix
from toto.testing import ContractError, check_backbone, check_head, check_tokenizer
from toto.tokenizers.config import TOKENIZERS, PatchConfig
from toto.tokenizers.patch import PatchTokenizer

TOKENIZER_CONFIGS = {
    "dvae": {"weights": "random:0", "num_codes": 64, "width": 8, "blocks_per_group": 1},
    "patch": {"patch_size": 16},
    "vqgan": {"weights": "random:0", "num_codes": 64, "width": 32, "blocks_per_level": 1},
}
BACKBONE_CONFIGS = {name: {"preset": "tiny"} for name in ("gpt2", "llama", "mamba")}
HEAD_CONFIGS = {"average": {}, "attention": {"num_heads": 2}, "cross_attention": {"num_heads": 2}}


def test_no_component_is_left_out():
    assert set(TOKENIZER_CONFIGS) == set(TOKENIZERS.names())
    assert set(BACKBONE_CONFIGS) == set(BACKBONES.names())
    assert set(HEAD_CONFIGS) == set(HEADS.names())


@pytest.mark.parametrize("name", TOKENIZER_CONFIGS)
def test_tokenizers(name):
    assert check_tokenizer(TOKENIZERS.parse({"name": name, **TOKENIZER_CONFIGS[name]}))


@pytest.mark.parametrize("name", BACKBONE_CONFIGS)
def test_backbones(name):
    assert check_backbone(BACKBONES.parse({"name": name, **BACKBONE_CONFIGS[name]}))


@pytest.mark.parametrize("name", HEAD_CONFIGS)
def test_heads(name):
    assert check_head(HEADS.parse({"name": name, **HEAD_CONFIGS[name]}))


def test_a_backbone_that_looks_ahead_is_caught(monkeypatch):
    forward = Llama.forward
    monkeypatch.setattr(Llama, "forward", lambda self, x: forward(self, x) + x.mean(1, True))
    with pytest.raises(ContractError, match=r"not causal: a change .* from position 12 on changed"):
        check_backbone(LlamaConfig(preset="tiny"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (CAUSAL, r"mask prefix none of the positions \[0, 1, 2, 3, 4\] changed with position 5"),
        (FULL, "not causal"),
        (Prefix(9), r"mask causal positions \[0, 1, 2, 3, 4\] changed with position 5"),
        (None, r"mask per_image positions \[9, 10, 11, 12\] changed with position 5"),
    ],
)
def test_a_backbone_that_ignores_its_mask_is_caught(monkeypatch, wrong, message):
    forward = Llama.forward
    if wrong is None:  # right, but for one mask
        monkeypatch.setattr(PerImage, "visibility", Causal.visibility)
    else:
        monkeypatch.setattr(Llama, "forward", lambda self, x, mask=CAUSAL: forward(self, x, wrong))
    with pytest.raises(ContractError, match=message):
        check_backbone(LlamaConfig(preset="tiny"))


def test_a_cache_that_forgets_is_caught(monkeypatch):
    append = KeyValues.append

    def forgetful(self, key, value):
        keys, values = append(self, key, value)
        return keys, torch.cat([values[:, :, :1] * 0, values[:, :, 1:]], dim=2)

    monkeypatch.setattr(KeyValues, "append", forgetful)
    with pytest.raises(ContractError, match="extend with a cache"):
        check_backbone(LlamaConfig(preset="tiny"))


def test_a_wrong_parameter_count_is_caught(monkeypatch):
    monkeypatch.setattr(LlamaConfig, "num_params", lambda self: 7)
    with pytest.raises(ContractError, match="num_params"):
        check_backbone(LlamaConfig(preset="tiny"))


def test_a_tokenizer_that_is_not_deterministic_is_caught(monkeypatch):
    encode = PatchTokenizer.encode
    noisy = lambda self, pixels: encode(self, pixels + 0.1 * torch.rand_like(pixels))  # noqa: E731
    monkeypatch.setattr(PatchTokenizer, "encode", noisy)
    with pytest.raises(ContractError, match="of the tokens differ when the same images come again"):
        check_tokenizer(PatchConfig())


def test_a_parameter_that_a_step_does_not_change_is_named(monkeypatch):
    def forward(self, x_BLD, mask=CAUSAL):  # its last gain has a gradient, and that is zero
        last_BLD, _ = self._walk(x_BLD, self.config.num_layers, set(), mask)
        return torch.nn.functional.rms_norm(last_BLD, last_BLD.shape[-1:]) + 0 * self.norm.weight

    monkeypatch.setattr(Llama, "forward", forward)
    with pytest.raises(ContractError, match=r"an optimizer step does not change norm\.weight"):
        check_backbone(LlamaConfig(preset="tiny", num_layers=1))
