from __future__ import annotations

import pytest
import torch

from toto.analysis.coordinates import check_coordinates, slope
from toto.analysis.figures import draw_coordinates
from toto.backbones.config import BACKBONES
from toto.model import AutoregressiveModel
from toto.tokenizers.config import DvaeConfig, PatchConfig

WIDTHS = [64, 128, 256, 512]
SIZES = {
    "llama": {"width": 64, "num_layers": 2, "num_heads": 4, "ffn_dim": 192},
    "gpt2": {"width": 64, "num_layers": 2, "num_heads": 4, "ffn_dim": 256},
    "mamba": {"width": 64, "num_layers": 2, "state_size": 4},
}


def test_slope_is_the_exponent():
    assert slope(WIDTHS, [2.0 * width**0.7 for width in WIDTHS]) == pytest.approx(0.7)
    assert slope(WIDTHS, [3.0] * 4) == pytest.approx(0.0)


@pytest.mark.parametrize("name", SIZES)
def test_activations_are_flat_in_width_under_mup_and_not_without(name, tmp_path):
    slopes = {}
    for base in (64, None):
        config = BACKBONES.parse({"name": name, **SIZES[name], "mup_base_width": base})
        measured = check_coordinates(config, WIDTHS, lr=0.01, steps=3)
        assert [one.name for one in measured] == ["layer 0", "layer 1", "layer 2", "logits"]
        assert all(len(one.sizes) == 4 for one in measured)
        # After the steps: under µP the first logits of a model m times as wide are small by design,
        # as 1 / √m.
        slopes[base] = [slope(WIDTHS, one.sizes[-1]) for one in measured]
        draw_coordinates(tmp_path / "c.png", WIDTHS, {"measured": measured})
    assert max(slopes[64]) < 0.3, slopes
    assert min(slopes[64]) > -0.5, slopes
    assert max(slopes[None]) > 1.0, slopes
    assert slopes[None][-1] > 0.4, slopes


def test_at_the_base_width_mup_is_the_standard_parametrisation():
    # Heads of 64 channels: there 8 / K is 1 / √K.
    sizes = {"name": "llama", "width": 128, "num_layers": 1, "num_heads": 2, "ffn_dim": 64}
    losses = []
    for base in (128, None):
        torch.manual_seed(0)
        config = BACKBONES.parse({**sizes, "mup_base_width": base})
        model = AutoregressiveModel(DvaeConfig(num_codes=60), config)
        codes = torch.randint(60, (2, 1, 4, 4), generator=torch.Generator().manual_seed(1))
        losses.append(model.losses(codes, torch.ones(2, dtype=torch.bool)))
    assert torch.equal(*losses)


def test_wider_matrices_start_smaller_and_the_readout_is_divided():
    config = BACKBONES.parse({"name": "llama", **SIZES["llama"], "mup_base_width": 64})
    wide = config.at_width(256)
    assert (wide.width, wide.ffn_dim, wide.num_heads, wide.width_ratio) == (256, 768, 4, 4.0)
    torch.manual_seed(0)
    tokenizer = PatchConfig(patch_size=8)
    mlp = wide.model_copy(update={"patch_readout": "mlp"})
    model = AutoregressiveModel(tokenizer, mlp)
    block = model.backbone.blocks[0]
    assert block.attention.query_key_value.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert block.mlp.down.weight.std().item() == pytest.approx(0.01 / 2, rel=0.05)
    assert model.interface.hidden.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert model.interface.readout.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.interface.output_scale == 0.25
