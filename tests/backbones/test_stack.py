"""What all stacks of blocks share: dropped paths, layers of parameters, features beside outputs."""

from __future__ import annotations

import pytest
import torch

from toto.backbones.base import Backbone
from toto.backbones.config import Gpt2Config, LlamaConfig, MambaConfig
from toto.errors import UserError
from toto.layers.masks import CAUSAL

CONFIGS = [
    LlamaConfig(width=16, num_layers=3, num_heads=2, ffn_dim=32),
    Gpt2Config(width=16, num_layers=3, num_heads=2, ffn_dim=32),
    MambaConfig(width=16, num_layers=3),
]
NAMES = [config.registered_name for config in CONFIGS]


def built(config):
    torch.manual_seed(0)
    return config.build(), torch.randn(2, 5, 16)


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_one_pass_gives_what_two_give(config):
    backbone, x_BLD = built(config)
    last_BLD, found = backbone.forward_with_features(x_BLD, [0, 2, -1])
    plain_BLD, plain = Backbone.forward_with_features(backbone, x_BLD, [0, 2, -1])
    assert torch.equal(last_BLD, plain_BLD)
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[layer], plain[layer]) for layer in plain)


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_every_parameter_has_a_layer(config):
    backbone, _ = built(config)
    layers = backbone.param_layers()
    assert layers.keys() == dict(backbone.named_parameters()).keys()
    assert set(layers.values()) == {1, 2, 3, 4}
    assert layers["norm.weight"] == 4


def test_no_path_is_dropped_at_rate_0_nor_in_evaluation():
    backbone, x_BLD = built(CONFIGS[0])
    expected_BLD = backbone(x_BLD)
    torch.manual_seed(1)
    word = torch.rand(1)
    torch.manual_seed(1)
    backbone.drop_paths(0.0)
    assert torch.equal(backbone.train()(x_BLD), expected_BLD)
    assert torch.equal(torch.rand(1), word)  # nothing was drawn
    backbone.drop_paths(0.9)
    assert torch.equal(backbone.eval()(x_BLD), expected_BLD)


@torch.no_grad()
def test_each_branch_is_left_out_on_its_own_or_scaled_up():
    backbone, _ = built(CONFIGS[0])
    x_BLD = torch.randn(1, 5, 16).expand(4000, -1, -1)
    backbone.drop_paths(0.5)  # of block 3; of block 2 half of that, of block 1 nothing
    torch.manual_seed(0)
    found = backbone.train().features(x_BLD, [1, 2])
    backbone.eval()
    first_BLD = backbone.features(x_BLD[:1], [1])[1]
    torch.testing.assert_close(found[1], first_BLD.expand(4000, -1, -1))
    block, kept = backbone.blocks[1], 0.75
    _, context = backbone.enter(x_BLD[:1], 0, CAUSAL)
    attention_BLD = block.attention(block.attention_norm(first_BLD), *context) / kept
    for with_attention in (True, False):
        middle_BLD = first_BLD + attention_BLD * with_attention
        for with_mlp in (True, False):
            out_BLD = middle_BLD + block.mlp(block.mlp_norm(middle_BLD)) / kept * with_mlp
            share = (found[2] - out_BLD).abs().amax((1, 2)).lt(1e-5).float().mean().item()
            expected = (0.75 if with_attention else 0.25) * (0.75 if with_mlp else 0.25)
            assert share == pytest.approx(expected, abs=0.03)


@torch.no_grad()
def test_a_block_of_one_branch_gives_in_the_mean_what_it_gives_without_dropping():
    backbone, _ = built(CONFIGS[2])
    x_BLD = torch.randn(1, 5, 16).expand(4000, -1, -1)
    backbone.drop_paths(0.5)
    dropped_BLD = backbone.train().features(x_BLD, [2])[2]
    plain_BLD = backbone.eval().features(x_BLD[:1], [2])[2]
    torch.testing.assert_close(dropped_BLD.mean(0), plain_BLD[0], atol=0.02, rtol=0.02)


@pytest.mark.parametrize("silent", ["attention.output.weight", "mlp.down.weight"])
def test_dropped_paths_keep_the_expected_value_of_a_branch(silent):
    """With the other branch silent, a block adds one branch, in the mean what it adds undropped.

    Without the factor 1 / kept the mean would be `kept` of it, here half.
    """
    config = LlamaConfig(width=16, num_layers=2, num_heads=2, ffn_dim=32)
    torch.manual_seed(0)
    backbone = config.build()
    with torch.no_grad():
        dict(backbone.named_parameters())[f"blocks.1.{silent}"].zero_()
    x_BLD = torch.randn(1, 5, 16).expand(4000, -1, -1)
    backbone.drop_paths(0.5)
    plain = backbone.eval().features(x_BLD[:1], [1, 2])
    found = backbone.train().features(x_BLD, [1, 2])
    added_LD = (plain[2] - plain[1])[0]
    mean_LD = (found[2] - found[1]).mean(0)
    ratio = (mean_LD * added_LD).sum() / added_LD.square().sum()
    assert ratio.item() == pytest.approx(1, abs=0.06)  # deviation of the mean: 1 / √4000


def test_a_backbone_that_cannot_says_so():
    backbone, _ = built(CONFIGS[0])
    with pytest.raises(UserError, match=r"task\.drop_path: backbone llama leaves no block out"):
        Backbone.drop_paths(backbone, 0.1)
    with pytest.raises(UserError, match=r"optimizer\.layer_decay: backbone llama does not say"):
        Backbone.param_layers(backbone)
