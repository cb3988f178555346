from __future__ import annotations

import pytest
import torch

from toto.backbones.config import MambaConfig
from toto.model import AutoregressiveModel
from toto.tokenizers.config import DvaeConfig

transformers = pytest.importorskip("transformers")

TOKENIZER = DvaeConfig(num_codes=60)
SIZES = {"width": 40, "num_layers": 3, "state_size": 6, "conv_kernel": 3, "norm_eps": 1e-3}
NAMES = {
    "norm.weight": "norm.weight",
    "in_proj.weight": "mixer.in_proj.weight",
    "conv.weight": "mixer.conv1d.weight",
    "conv.bias": "mixer.conv1d.bias",
    "x_proj.weight": "mixer.x_proj.weight",
    "dt_proj.weight": "mixer.dt_proj.weight",
    "dt_proj.bias": "mixer.dt_proj.bias",
    "a_log": "mixer.A_log",
    "skip": "mixer.D",
    "out_proj.weight": "mixer.out_proj.weight",
}


def peer_of(model: AutoregressiveModel, config: MambaConfig) -> torch.nn.Module:
    """The transformers model with the same weights, on its plain path."""
    peer = transformers.MambaForCausalLM(
        transformers.MambaConfig(
            vocab_size=64,
            hidden_size=config.width,
            num_hidden_layers=config.num_layers,
            state_size=config.state_size,
            expand=config.expand,
            conv_kernel=config.conv_kernel,
            time_step_rank=config.dt_rank,
            layer_norm_epsilon=config.norm_eps,
            tie_word_embeddings=config.tie_embeddings,
            use_mambapy=False,
        )
    ).eval()
    state = model.state_dict()
    embedding = state["interface.embedding.weight"]
    weights = {
        "backbone.embeddings.weight": embedding,
        "lm_head.weight": state.get("interface.readout.weight", embedding),
        "backbone.norm_f.weight": state["backbone.norm.weight"],
    } | {
        f"backbone.layers.{index}.{theirs}": state[f"backbone.blocks.{index}.{ours}"]
        for index in range(config.num_layers)
        for ours, theirs in NAMES.items()
    }
    peer.load_state_dict(weights)
    return peer


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def pair(request: pytest.FixtureRequest) -> tuple[AutoregressiveModel, torch.nn.Module]:
    config = MambaConfig(**SIZES, tie_embeddings=request.param)
    torch.manual_seed(0)
    model = AutoregressiveModel(TOKENIZER, config)
    for parameter in model.parameters():  # larger than at the start, and gains that are not 1
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model, peer_of(model, config)


def test_logits_equal_those_of_transformers(pair):
    model, peer = pair
    ids = torch.randint(64, (2, 33))
    with torch.no_grad():
        theirs = peer(ids).logits
        for length in (1, 2, 17, 33):
            ours = model.next_logits(ids[:, :length], model.new_cache(length))
            torch.testing.assert_close(ours, theirs[:, length - 1], atol=1e-5, rtol=1e-5)
    assert theirs.std() > 0.1


def test_losses_and_gradients_equal_those_of_transformers(pair):
    model, peer = pair
    codes = torch.randint(60, (2, 2, 4, 4))
    losses = model.losses(codes, torch.tensor([False, True]))
    losses.mean().backward()
    start, end = torch.tensor([[1], [3]]), torch.full((2, 1), 2)
    ids = torch.cat((start, codes.flatten(1) + 4, end), dim=1)
    targets = ids[:, 1:].contiguous()
    theirs = peer(ids[:, :-1], labels=targets, shift_labels=targets).loss
    theirs.backward()
    torch.testing.assert_close(losses.mean(), theirs, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(
        model.interface.embedding.weight.grad,
        peer.backbone.embeddings.weight.grad,
        atol=1e-5,
        rtol=1e-5,
    )
    for block, layer in zip(model.backbone.blocks, peer.backbone.layers, strict=True):
        for ours, other in NAMES.items():
            torch.testing.assert_close(
                block.get_parameter(ours).grad,
                layer.get_parameter(other).grad,
                atol=1e-5,
                rtol=1e-4,
            )
