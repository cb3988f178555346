from __future__ import annotations

import pytest
import torch

from toto.backbones.config import LlamaConfig
from toto.model import AutoregressiveModel
from toto.tokenizers.config import DvaeConfig

transformers = pytest.importorskip("transformers")

TOKENIZER = DvaeConfig(num_codes=60)
SIZES = {"width": 48, "num_layers": 3, "num_heads": 4, "ffn_dim": 104}


def peer_of(model: AutoregressiveModel, config: LlamaConfig) -> torch.nn.Module:
    """The transformers model with the same weights; half-split RoPE makes it a rename."""
    peer = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64,
            hidden_size=config.width,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_heads,
            max_position_embeddings=64,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
            tie_word_embeddings=config.tie_embeddings,
        )
    ).eval()
    state = model.state_dict()
    embedding = state["interface.embedding.weight"]
    weights = {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": state.get("interface.readout.weight", embedding),
        "model.norm.weight": state["backbone.norm.weight"],
    }
    for index in range(config.num_layers):
        ours, theirs = f"backbone.blocks.{index}.", f"model.layers.{index}."
        qkv = state[ours + "attention.query_key_value.weight"].chunk(3)
        for letter, weight in zip("qkv", qkv, strict=True):
            weights[f"{theirs}self_attn.{letter}_proj.weight"] = weight
        gate, up = state[ours + "mlp.gate_up.weight"].chunk(2)
        weights |= {
            f"{theirs}mlp.gate_proj.weight": gate,
            f"{theirs}mlp.up_proj.weight": up,
            f"{theirs}mlp.down_proj.weight": state[ours + "mlp.down.weight"],
            f"{theirs}self_attn.o_proj.weight": state[ours + "attention.output.weight"],
            f"{theirs}input_layernorm.weight": state[ours + "attention_norm.weight"],
            f"{theirs}post_attention_layernorm.weight": state[ours + "mlp_norm.weight"],
        }
    peer.load_state_dict(weights)
    return peer


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def pair(request: pytest.FixtureRequest) -> tuple[AutoregressiveModel, torch.nn.Module]:
    config = LlamaConfig(**SIZES, tie_embeddings=request.param, rope_base=500.0, norm_eps=1e-3)
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
    is_image = torch.tensor([False, True])
    losses = model.losses(codes, is_image)
    losses.mean().backward()

    ids = torch.cat(
        (torch.tensor([[1], [3]]), codes.flatten(1) + 4, torch.full((2, 1), 2)), dim=1
    )  # start, visual ids, end
    targets = ids[:, 1:].contiguous()
    theirs = peer(ids[:, :-1], labels=targets, shift_labels=targets).loss
    theirs.backward()
    torch.testing.assert_close(losses.mean(), theirs, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(
        model.interface.embedding.weight.grad,
        peer.model.embed_tokens.weight.grad,
        atol=1e-5,
        rtol=1e-5,
    )
    gate_grad = model.backbone.blocks[0].mlp.gate_up.weight.grad.chunk(2)[0]
    torch.testing.assert_close(
        gate_grad, peer.model.layers[0].mlp.gate_proj.weight.grad, atol=1e-5, rtol=1e-5
    )
