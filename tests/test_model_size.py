"""Arithmetic on Configs beside the real modules, on the meta device."""

from __future__ import annotations

import pytest
import torch

from toto.backbones.config import LLAMA_PRESETS, LlamaConfig
from toto.model import AutoregressiveModel
from toto.model_size import ModelSize
from toto.recipe.derived import derived_numbers
from toto.recipe.reader import list_recipes, read_recipe
from toto.recipe.schemas import TrainRecipe
from toto.sequence import SequenceLayout
from toto.tokenizers.config import DvaeConfig, PatchConfig

# Table 1 of the paper: 120m, 280m and 1.1b, to the digits that its compute in Table 4 confirms.
PAPER_MILLIONS = {"base": 119.6, "large": 276.9, "1b": 1147.0}


def real_params(tokenizer, backbone):
    with torch.device("meta"):
        model = AutoregressiveModel(tokenizer, backbone)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "tokenizer", [DvaeConfig(num_codes=64), PatchConfig()], ids=["codes", "patches"]
)
def test_the_count_is_that_of_the_module(tokenizer, tied):
    backbone = LlamaConfig(preset="tiny", tie_embeddings=tied)
    assert ModelSize.of(tokenizer, backbone).total == real_params(tokenizer, backbone)


@pytest.mark.parametrize("preset", PAPER_MILLIONS)
def test_the_presets_have_the_papers_counts(preset):
    backbone = LlamaConfig(preset=preset)
    size = ModelSize.of(DvaeConfig(), backbone)
    assert size.total / 1e6 == pytest.approx(PAPER_MILLIONS[preset], rel=0.005)
    assert size.total == real_params(DvaeConfig(), backbone)


def test_macs_are_those_of_a_count_by_hand():
    backbone = LlamaConfig(**LLAMA_PRESETS["tiny"])
    layout = SequenceLayout(2, 2, 2)
    matrices = 2 * (4 * 64 * 64 + 3 * 64 * 192)
    scores_and_values = 2 * sum(2 * 64 * (t + 1) for t in range(9))
    expected = 9 * (matrices + 64 * 68) + scores_and_values
    assert (
        ModelSize.of(DvaeConfig(num_codes=64), backbone).forward_macs(backbone, layout) == expected
    )


@pytest.mark.parametrize("entry", list_recipes(), ids=lambda entry: entry.path.stem)
def test_every_recipe_builds_on_the_meta_device_with_its_derived_count(entry):
    recipe = read_recipe(str(entry.path))
    if isinstance(recipe, TrainRecipe):
        counted = real_params(recipe.tokenizer, recipe.backbone)
        assert derived_numbers(recipe)["params_total"] == counted
