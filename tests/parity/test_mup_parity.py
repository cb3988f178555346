"""µP next to the mup package: its learning rates, decays, initial deviations and a training.

The numbers are those of mup 1.0.0 (PyPI, sdist mup-1.0.0.tar.gz; microsoft/mup): the models below
under `set_base_shapes(model at 128, base at 32, delta=model at 64, rescale_params=False)`, trained
by `MuAdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)`, whose groups were toto's split in what
decays (0.1) and what does not; deviations by `mup.init.normal_(parameter, std=0.02)`. The package
asks for torchvision and seaborn, so it is not installed here.
"""

from __future__ import annotations

import pytest
import torch

from toto.backbones.config import BACKBONES
from toto.model import AutoregressiveModel
from toto.tokenizers.config import DvaeConfig
from toto.training.config import OptimizerConfig
from toto.training.optim import build_optimizer

BASE, WIDTH = 32, 128
SIZES = {
    "llama": {"width": 32, "num_layers": 1, "num_heads": 4, "ffn_dim": 96, "tie_embeddings": False},
    "gpt2": {"width": 32, "num_layers": 1, "num_heads": 4, "ffn_dim": 128, "tie_embeddings": True},
}
EACH = pytest.mark.parametrize("name", SIZES)

# Rate and decay of AdamW, and the std of fresh weights over 0.02.
MATRIX = (0.0025, 0.4, 0.5)
READOUT = (0.01, 0.1, 1.0)
EMBEDDING = (0.01, 0.0, 1.0)
VECTOR = (0.01, 0.0, None)
MUP = {
    "llama": {
        "interface.embedding.weight": EMBEDDING,
        "interface.readout.weight": READOUT,
        "backbone.blocks.0.attention_norm.weight": VECTOR,
        "backbone.blocks.0.attention.query_key_value.weight": MATRIX,
        "backbone.blocks.0.attention.output.weight": MATRIX,
        "backbone.blocks.0.mlp_norm.weight": VECTOR,
        "backbone.blocks.0.mlp.gate_up.weight": MATRIX,
        "backbone.blocks.0.mlp.down.weight": MATRIX,
        "backbone.norm.weight": VECTOR,
    },
    "gpt2": {
        "interface.embedding.weight": EMBEDDING,
        "backbone.blocks.0.attention_norm.weight": VECTOR,
        "backbone.blocks.0.attention_norm.bias": VECTOR,
        "backbone.blocks.0.attention.query_key_value.weight": MATRIX,
        "backbone.blocks.0.attention.query_key_value.bias": VECTOR,
        "backbone.blocks.0.attention.output.weight": MATRIX,
        "backbone.blocks.0.attention.output.bias": VECTOR,
        "backbone.blocks.0.mlp_norm.weight": VECTOR,
        "backbone.blocks.0.mlp_norm.bias": VECTOR,
        "backbone.blocks.0.mlp.up.weight": MATRIX,
        "backbone.blocks.0.mlp.up.bias": VECTOR,
        "backbone.blocks.0.mlp.down.weight": MATRIX,
        "backbone.blocks.0.mlp.down.bias": VECTOR,
        "backbone.norm.weight": VECTOR,
        "backbone.norm.bias": VECTOR,
    },
}
LOSSES = {
    "llama": [2.7762222, 2.7602220, 2.6861470, 2.6901088, 2.6611333, 2.6140411],
    "gpt2": [2.7832732, 2.7607441, 2.6886663, 2.6997163, 2.6463664, 2.6058941],
}


def make(name: str) -> tuple[AutoregressiveModel, torch.optim.AdamW]:
    torch.manual_seed(0)
    config = BACKBONES.parse({"name": name, **SIZES[name], "mup_base_width": BASE}).at_width(WIDTH)
    model = AutoregressiveModel(DvaeConfig(num_codes=12), config)
    optimizer = build_optimizer(
        model,
        model.param_roles(),
        OptimizerConfig(lr=1e-2, weight_decay=0.1),
        width_ratio=model.width_ratio,
    )
    for group in optimizer.param_groups:
        group["lr"] = 1e-2 * group["lr_scale"]  # as the engine does before each step
    return model, optimizer


@EACH
def test_rates_decays_and_deviations_are_those_of_the_package(name):
    model, optimizer = make(name)
    found = {
        parameter: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["param_names"]
    }
    assert found == {parameter: values[:2] for parameter, values in MUP[name].items()}
    for parameter, tensor in model.named_parameters():
        gain = MUP[name][parameter][2]
        if gain is not None:
            # Outputs of residual branches are smaller by √(2 L) on top of it, as in GPT-2.
            is_residual = parameter.endswith(("output.weight", "down.weight"))
            expected = 0.02 * gain / (2**0.5 if is_residual else 1)
            assert tensor.std().item() == pytest.approx(expected, rel=0.05), parameter


@EACH
def test_a_training_loses_what_it_loses_under_the_package(name):
    model, optimizer = make(name)
    losses = []
    for step in range(len(LOSSES[name])):
        codes = torch.randint(12, (4, 1, 4, 4), generator=torch.Generator().manual_seed(step))
        loss = model.losses(codes, torch.ones(4, dtype=torch.bool)).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == pytest.approx(LOSSES[name], rel=1e-5)


def test_logits_are_divided_as_the_readout_of_the_package_divides_its_input():
    """MuReadout: output_mult · x / width_mult(), 128 / 32 here, in front of the product."""
    model, _ = make("llama")
    x_BD = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))
    expected = (x_BD / 4) @ model.interface.readout.weight.T
    torch.testing.assert_close(model.interface.logits(x_BD), expected)
