"""Every family gives the logits, losses and gradients of transformers' own class."""

from __future__ import annotations

import pytest
import torch

from toto.backbones.config import BACKBONES, BackboneConfig
from toto.export.layout import family_of, to_theirs
from toto.model import AutoregressiveModel
from toto.tokenizers.config import DvaeConfig

transformers = pytest.importorskip("transformers")

SIZES = {"width": 48, "num_layers": 3, "num_heads": 4, "ffn_dim": 104, "norm_eps": 1e-3}
LLAMA = {"name": "llama", "rope_base": 500.0, **SIZES}
MAMBA = {
    "name": "mamba", "width": 40, "num_layers": 3, "state_size": 6, "conv_kernel": 3,
    "norm_eps": 1e-3,
}  # fmt: skip
CASES = {
    "llama tied": LLAMA,
    "llama untied": LLAMA | {"tie_embeddings": False},
    "llama grouped": LLAMA | {"num_kv_heads": 2},
    "llama one key-value head": LLAMA | {"num_kv_heads": 1},
    "gpt2": {"name": "gpt2", **SIZES},
    "mamba tied": MAMBA,
    "mamba untied": MAMBA | {"tie_embeddings": False},
}
VOCAB = 64
LENGTH = 33


@pytest.fixture(params=CASES)
def config(request: pytest.FixtureRequest) -> BackboneConfig:
    return BACKBONES.parse(CASES[request.param])


@pytest.fixture
def pair(config: BackboneConfig) -> tuple[AutoregressiveModel, torch.nn.Module]:
    """Ours, and the one of transformers with the same weights, on its plain path."""
    torch.manual_seed(0)
    model = AutoregressiveModel(DvaeConfig(num_codes=VOCAB - 4), config)
    for parameter in model.parameters():  # larger than at the start, gains not 1, biases not 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    family = family_of(config, vocab_size=VOCAB, length=LENGTH)
    name = family.config["architectures"][0]
    peer_config = getattr(transformers, name).config_class(**family.config)
    peer_config.use_mambapy = False
    peer = getattr(transformers, name)(peer_config).eval()
    weights = to_theirs(model.state_dict(), family)
    weights.setdefault("lm_head.weight", weights[family.embedding])
    peer.load_state_dict(weights)
    return model, peer


def test_logits_equal_those_of_transformers(pair):
    model, peer = pair
    ids = torch.randint(VOCAB, (2, LENGTH))
    with torch.no_grad():
        theirs = peer(ids).logits
        for length in (1, 2, 17, LENGTH):
            ours = model.next_logits(ids[:, :length], model.new_cache(length))
            torch.testing.assert_close(ours, theirs[:, length - 1], atol=1e-5, rtol=1e-5)
    assert theirs.std() > 0.1


def test_losses_and_gradients_equal_those_of_transformers(config, pair):
    model, peer = pair
    codes = torch.randint(VOCAB - 4, (2, 2, 4, 4))
    losses = model.losses(codes, torch.tensor([False, True]))
    losses.mean().backward()
    start, end = torch.tensor([[1], [3]]), torch.full((2, 1), 2)
    ids = torch.cat((start, codes.flatten(1) + 4, end), dim=1)
    targets = ids[:, 1:].contiguous()
    theirs = peer(ids[:, :-1], labels=targets, shift_labels=targets).loss
    theirs.backward()
    torch.testing.assert_close(losses.mean(), theirs, atol=1e-6, rtol=1e-6)
    family = family_of(config, vocab_size=VOCAB, length=LENGTH)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    ours = to_theirs(gradients, family)
    compared = 0
    for name, parameter in peer.named_parameters():
        if name not in family.made:
            torch.testing.assert_close(ours[name], parameter.grad, atol=1e-5, rtol=1e-4)
            compared += 1
    assert compared == len(ours) - len(family.made)
