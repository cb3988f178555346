"""Arithmetic on Configs beside the real modules, on the meta device."""

from __future__ import annotations

import pytest
import torch

from toto.backbones.config import LLAMA_PRESETS, LlamaConfig
from toto.model import AutoregressiveModel
from toto.model_size import ModelSize
from toto.recipe.derived import derived_numbers
from toto.recipe.reader import read_recipe, training_recipes
from toto.recipe.schemas import TrainRecipe
from toto.sequence import SequenceLayout
from toto.tokenizers.config import DvaeConfig, PatchConfig

# Table 1 of the paper: 120m, 280m and 1.1b, to the digits that its compute in Table 4 confirms.
PAPER_MILLIONS = {"base": 119.6, "large": 276.9, "1b": 1147.0}


def real_params(tokenizer, backbone, target=None):
    with torch.device("meta"):
        model = AutoregressiveModel(tokenizer, backbone, target)
    return sum(parameter.numel() for parameter in model.parameters())


ENDS = {
    "codes": (DvaeConfig(num_codes=64), None),
    "patches": (PatchConfig(), None),
    "patches to codes": (PatchConfig(), DvaeConfig(num_codes=64)),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("readout", ["linear", "mlp"])
@pytest.mark.parametrize("ends", ENDS)
def test_the_count_is_that_of_the_module(ends, readout, tied):
    tokenizer, target = ENDS[ends]
    backbone = LlamaConfig(preset="tiny", tie_embeddings=tied, patch_readout=readout)
    size = ModelSize.of(tokenizer, backbone, target)
    assert size.total == real_params(tokenizer, backbone, target)


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


def test_macs_of_patches_count_their_embedding_and_each_target_once():
    layout = SequenceLayout(2, 2, 2)
    backbone = LlamaConfig(preset="tiny")
    blocks, embedding = backbone.forward_macs(9), 8 * 64 * 768
    for changes, target, readout in (
        ({}, None, 8 * 64 * 768),
        ({"patch_readout": "mlp"}, None, 8 * (64 * 256 + 256 * 768)),
        ({}, DvaeConfig(num_codes=64), 9 * 64 * 68),
    ):
        changed = backbone.model_copy(update=changes)
        size = ModelSize.of(PatchConfig(), changed, target)
        assert size.forward_macs(changed, layout) == blocks + embedding + readout


@pytest.mark.parametrize("entry", training_recipes(), ids=lambda entry: entry.path.stem)
def test_every_recipe_builds_on_the_meta_device_with_its_derived_count(entry):
    recipe = read_recipe(str(entry.path))
    if isinstance(recipe, TrainRecipe):
        counted = real_params(recipe.tokenizer, recipe.backbone, recipe.target_tokenizer)
        assert derived_numbers(recipe)["params_total"] == counted
