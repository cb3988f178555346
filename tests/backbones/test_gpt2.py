from __future__ import annotations

import math

import pytest
import torch

from toto.backbones.config import Gpt2Config
from toto.backbones.gpt2 import sine_cosine_positions
from toto.model import AutoregressiveModel
from toto.model_size import ModelSize
from toto.testing import check_backbone
from toto.tokenizers.config import DvaeConfig

CONFIG = Gpt2Config(width=24, num_layers=3, num_heads=2, ffn_dim=40)


def test_keeps_the_contract_of_a_backbone():
    check_backbone(CONFIG)


def test_positions_are_sines_and_cosines():
    positions = sine_cosine_positions(9, 8, torch.device("cpu"))
    for position in range(9):
        for pair in range(4):
            angle = position * 10_000 ** (-2 * pair / 8)
            assert positions[position, pair].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert positions[position, pair + 4].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_equal_inputs_differ_by_their_place():
    torch.manual_seed(0)
    gpt2 = CONFIG.build()
    x_BLD = torch.randn(1, 1, 24).expand(1, 6, 24)
    out_BLD = gpt2(x_BLD)
    assert (out_BLD[:, 1:] - out_BLD[:, :-1]).abs().amax(-1).min() > 1e-3


def test_the_model_of_table_6_has_about_280_million_parameters():
    config = Gpt2Config.model_validate({"preset": "280m"})
    with torch.device("meta"):
        model = AutoregressiveModel(DvaeConfig(), config)
    real = sum(parameter.numel() for parameter in model.parameters())
    assert real == ModelSize.of(DvaeConfig(), config).total
    assert real == pytest.approx(285.5e6, rel=2e-3)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean '280m'"):
        Gpt2Config.model_validate({"preset": "280"})
