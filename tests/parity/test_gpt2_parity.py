from __future__ import annotations

import pytest
import torch

from toto.backbones.config import Gpt2Config
from toto.backbones.gpt2 import sine_cosine_positions
from toto.model import AutoregressiveModel
from toto.tokenizers.config import DvaeConfig

transformers = pytest.importorskip("transformers")

CONFIG = Gpt2Config(width=48, num_layers=3, num_heads=4, ffn_dim=104, norm_eps=1e-3)
LENGTH = 64


def peer_of(model: AutoregressiveModel) -> torch.nn.Module:
    """The transformers model with the same weights, its learned positions set to ours."""
    peer = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=64,
            n_positions=LENGTH,
            n_embd=CONFIG.width,
            n_layer=CONFIG.num_layers,
            n_head=CONFIG.num_heads,
            n_inner=CONFIG.ffn_dim,
            layer_norm_epsilon=CONFIG.norm_eps,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    ).eval()
    state = model.state_dict()
    embedding = state["interface.embedding.weight"]
    positions = sine_cosine_positions(LENGTH, CONFIG.width, torch.device("cpu"))
    weights = {
        "transformer.wte.weight": embedding,
        "lm_head.weight": embedding,
        "transformer.wpe.weight": CONFIG.position_scale * positions,
        "transformer.ln_f.weight": state["backbone.norm.weight"],
        "transformer.ln_f.bias": state["backbone.norm.bias"],
    }
    names = {
        "attention_norm": "ln_1",
        "attention.query_key_value": "attn.c_attn",
        "attention.output": "attn.c_proj",
        "mlp_norm": "ln_2",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    }
    for index in range(CONFIG.num_layers):
        for ours, theirs in names.items():
            for part in ("weight", "bias"):
                tensor = state[f"backbone.blocks.{index}.{ours}.{part}"]
                # Their products are x W, ours x Wᵀ.
                weights[f"transformer.h.{index}.{theirs}.{part}"] = (
                    tensor.T if tensor.ndim == 2 else tensor
                )
    peer.load_state_dict(weights)
    return peer


@pytest.fixture
def pair() -> tuple[AutoregressiveModel, torch.nn.Module]:
    torch.manual_seed(0)
    model = AutoregressiveModel(DvaeConfig(num_codes=60), CONFIG)
    for parameter in model.parameters():  # larger than at the start, and biases that are not 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model, peer_of(model)


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
    pairs = [
        (model.interface.embedding.weight.grad, peer.transformer.wte.weight.grad),
        (
            model.backbone.blocks[0].attention.query_key_value.weight.grad.T,
            peer.transformer.h[0].attn.c_attn.weight.grad,
        ),
        (model.backbone.blocks[1].mlp.up.bias.grad, peer.transformer.h[1].mlp.c_fc.bias.grad),
    ]
    for ours, other in pairs:
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)
