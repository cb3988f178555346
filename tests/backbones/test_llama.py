from __future__ import annotations

import pytest
import torch

from toto.backbones.config import LlamaConfig
from toto.layers.masks import CAUSAL
from toto.model import AutoregressiveModel
from toto.model_size import ModelSize
from toto.testing import check_backbone
from toto.tokenizers.config import DvaeConfig, PatchConfig, VqganConfig

CONFIG = LlamaConfig(width=24, num_layers=3, num_heads=2, ffn_dim=40)


@pytest.fixture
def llama() -> torch.nn.Module:
    torch.manual_seed(0)
    return CONFIG.build()


def test_keeps_the_contract_of_a_backbone():
    check_backbone(CONFIG)


def test_nothing_before_a_changed_token_moves(llama):
    x = torch.randn(2, 12, 24)
    out = llama(x)
    for changed in (0, 5, 11):
        other = x.clone()
        other[:, changed] += 1
        moved = (llama(other) - out).abs().amax((0, 2))
        assert torch.equal(moved[:changed], torch.zeros(changed))
        assert (moved[changed:] > 1e-4).all()


def test_features_are_what_stands_after_each_block(llama):
    x = torch.randn(2, 7, 24)
    found = llama.features(x, [0, 2, -1, -4, 3])
    assert list(found) == [0, 2, -1, -4, 3]
    assert torch.equal(found[0], x)
    assert torch.equal(found[-4], x)
    assert torch.equal(found[-1], found[3])
    assert torch.equal(llama.norm(found[3]), llama(x))
    assert torch.equal(llama.features(x, [1])[1], llama.blocks[0](*llama.enter(x, 0, CAUSAL)))


def test_features_stop_after_the_highest_layer(llama):
    def fail(*_: object) -> None:
        raise AssertionError("a block after the highest layer ran")

    llama.blocks[2].register_forward_hook(fail)
    assert set(llama.features(torch.randn(1, 4, 24), [1, -2])) == {1, -2}
    with pytest.raises(AssertionError):
        llama.features(torch.randn(1, 4, 24), [3])


@pytest.mark.parametrize("layer", [4, -5])
def test_a_layer_that_does_not_exist_is_refused(llama, layer):
    with pytest.raises(ValueError, match=r"there are 0\.\.3"):
        llama.features(torch.randn(1, 4, 24), [layer])


@pytest.mark.parametrize(
    ("preset", "millions"), [("base", 119.6), ("large", 276.9), ("1b", 1147.0)]
)
def test_presets_have_the_papers_parameter_counts(preset, millions):
    config = LlamaConfig.model_validate({"preset": preset})
    with torch.device("meta"):
        model = AutoregressiveModel(DvaeConfig(), config)
    real = sum(parameter.numel() for parameter in model.parameters())
    assert real == pytest.approx(millions * 1e6, rel=5e-3)
    assert real == ModelSize.of(DvaeConfig(), config).total
    assert sum(p.numel() for p in model.backbone.parameters()) == config.num_params()
    assert model.interface.embedding.weight.shape == (8196, config.width)


@pytest.mark.parametrize("tokenizer", [DvaeConfig(num_codes=60), PatchConfig(patch_size=4)])
@pytest.mark.parametrize("tied", [True, False])
def test_model_size_equals_the_real_model(tokenizer, tied):
    config = CONFIG.model_copy(update={"tie_embeddings": tied})
    with torch.device("meta"):
        model = AutoregressiveModel(tokenizer, config)
    roles = model.param_roles()
    counts = {"embed": 0, "filter": 0, "hidden": 0, "norm": 0, "readout": 0}
    for name, parameter in model.named_parameters():
        counts[roles[name]] += parameter.numel()
    size = ModelSize.of(tokenizer, config)
    assert counts["embed"] + counts["filter"] == size.embedding
    assert counts["readout"] == size.readout
    assert counts["hidden"] + counts["norm"] == size.backbone


def test_weights_start_with_the_stated_deviations():
    torch.manual_seed(0)
    llama = LlamaConfig(width=128, num_layers=8, num_heads=4, ffn_dim=256).build()
    for block in llama.blocks:
        for weight, std in (
            (block.attention.query_key_value.weight, 0.02),
            (block.attention.output.weight, 0.02 / 4),
            (block.mlp.gate_up.weight, 0.02),
            (block.mlp.down.weight, 0.02 / 4),
        ):
            assert weight.std().item() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize(
    ("preset", "printed", "unit"),
    [
        ("a1", "14.8", 1e6),
        ("a2", "77.2", 1e6),
        ("a3", "215", 1e6),
        ("a4", "458", 1e6),
        ("a5", "1.2", 1e9),
        ("a6", "1.9", 1e9),
    ],
)
def test_the_models_of_table_15_have_the_digits_that_it_prints(preset, printed, unit):
    config = LlamaConfig.model_validate({"preset": preset})
    tokenizer = VqganConfig(num_codes=1024)
    with torch.device("meta"):
        model = AutoregressiveModel(tokenizer, config)
    real = sum(parameter.numel() for parameter in model.parameters())
    decimals = len(printed.partition(".")[2])
    assert f"{real / unit:.{decimals}f}" == printed
    assert real == ModelSize.of(tokenizer, config).total


def test_fewer_key_value_heads_must_divide_the_heads():
    assert CONFIG.num_kv_heads == CONFIG.num_heads
    with pytest.raises(ValueError, match="does not divide by num_kv_heads 3"):
        LlamaConfig(width=24, num_layers=1, num_heads=4, num_kv_heads=3, ffn_dim=8)
