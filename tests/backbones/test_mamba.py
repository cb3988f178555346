from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import softplus

from toto.backbones.config import LlamaConfig, MambaConfig
from toto.backbones.stack import Context
from toto.layers.masks import Prefix, Visibility
from toto.model import AutoregressiveModel
from toto.model_size import ModelSize
from toto.tokenizers.config import DvaeConfig
from toto.training.optim import parameter_groups

CONFIG = MambaConfig(width=24, num_layers=3, state_size=5)


def test_the_rank_of_steps_is_a_sixteenth_of_the_width_rounded_up():
    assert CONFIG.dt_rank == 2
    assert MambaConfig(width=32, num_layers=1).dt_rank == 2
    assert MambaConfig(width=32, num_layers=1, dt_rank=7).dt_rank == 7
    assert MambaConfig.model_validate({"preset": "tiny", "width": 160}).dt_rank == 10
    assert MambaConfig.model_validate(CONFIG.model_dump()) == CONFIG


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match=r"mamba has tiny, small, 290m\. Did you mean '290m'"):
        MambaConfig.model_validate({"preset": "290"})


def test_the_model_of_table_6_has_about_290_million_parameters():
    config = MambaConfig.model_validate({"preset": "290m"})
    with torch.device("meta"):
        model = AutoregressiveModel(DvaeConfig(), config)
    real = sum(parameter.numel() for parameter in model.parameters())
    assert real == ModelSize.of(DvaeConfig(), config).total
    assert f"{real / 1e6:.1f}" == "288.4"


@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_presets_are_about_as_large_as_llamas(preset):
    mamba, llama = (
        config.model_validate({"preset": preset}).num_params()
        for config in (MambaConfig, LlamaConfig)
    )
    assert mamba == pytest.approx(llama, rel=0.1)


def test_weights_start_as_published():
    torch.manual_seed(0)
    config = MambaConfig(width=128, num_layers=4)
    assert (config.inner_width, config.dt_rank) == (256, 8)
    for block in config.build().blocks:
        rates_ES = block.a_log.exp()
        torch.testing.assert_close(rates_ES, torch.arange(1.0, 17).expand(256, 16))
        assert torch.equal(block.skip, torch.ones(256))
        step_E = softplus(block.dt_proj.bias)
        assert 1e-3 * 0.999 <= step_E.min() < 2e-3
        assert 5e-2 < step_E.max() <= 1e-1 * 1.001
        assert step_E.log().mean().item() == pytest.approx(math.log(1e-2), abs=0.3)
        for weight, bound in (
            (block.dt_proj.weight, 8**-0.5),
            (block.in_proj.weight, 128**-0.5),
            (block.x_proj.weight, 256**-0.5),
            (block.conv.weight, 4**-0.5),
            (block.out_proj.weight, 256**-0.5 / 2),  # over the root of 4 layers
        ):
            assert 0.95 * bound < weight.abs().max() <= bound
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_rates_and_skips_do_not_decay():
    mamba = CONFIG.build()
    decayed, plain = parameter_groups(mamba, mamba.param_roles(), 0.1)
    assert plain["weight_decay"] == 0
    first = [
        {name.removeprefix("blocks.0.") for name, _ in group["params"] if "blocks.0." in name}
        for group in (decayed, plain)
    ]
    parts = ("in_proj", "conv", "x_proj", "dt_proj", "out_proj")
    assert first[0] == {f"{part}.weight" for part in parts}
    assert first[1] == {"a_log", "skip", "norm.weight", "conv.bias", "dt_proj.bias"}


def test_under_mup_the_rate_of_filters_stays():
    mamba = CONFIG.build()
    groups = parameter_groups(mamba, mamba.param_roles(), 0.1, width_ratio=4.0)
    scales = {
        name.removeprefix("blocks.0."): (group["lr_scale"], group["weight_decay"])
        for group in groups
        for name, _ in group["params"]
    }
    assert scales["conv.weight"] == (1.0, 0.1)
    assert scales["in_proj.weight"] == (0.25, 0.4)


def test_any_mask_but_the_causal_one_is_refused():
    with pytest.raises(ValueError, match="all that came before and nothing else"):
        CONFIG.build()(torch.randn(1, 4, 24), Prefix(2))


def test_the_residual_stream_and_the_scan_stay_fp32_under_autocast():
    torch.manual_seed(0)
    mamba = CONFIG.build()
    x_BLD = torch.randn(2, 9, 24)
    with torch.autocast("cpu", torch.bfloat16):
        low_BLD = mamba(x_BLD)
    assert low_BLD.dtype == torch.float32
    full_BLD = mamba(x_BLD)
    assert not torch.equal(low_BLD, full_BLD)
    torch.testing.assert_close(low_BLD, full_BLD, atol=0.05, rtol=0.05)


def test_a_block_compiles_as_one_graph():
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        block = MambaConfig(width=16, num_layers=1, state_size=4).build().blocks[0]
        if compiled:
            block.compile(dynamic=False, fullgraph=True, backend="aot_eager")
        x_BLD = torch.randn(2, 19, 16, generator=torch.Generator().manual_seed(1))
        loss = block(x_BLD, Context(Visibility(causal=True))).square().mean()
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in block.parameters())])
    for eager, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, eager, atol=1e-6, rtol=1e-4)
