"""The rows of the paper's Table 6, at full and at small size, and the models of its Table 1."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from toto.backbones.config import LlamaConfig
from toto.jobs.trained import build_model
from toto.recipe.derived import derived_numbers
from toto.recipe.reader import find_recipe, read_recipe

# Row → top-1 in %, preset, millions of parameters: the paper's, and ours to the digit.
TABLE_6 = {
    "gpt2": (48.5, "280m", 280, 285.5),
    "llama": (53.2, "large", 280, 276.9),
    "mamba": (40.7, "290m", 290, 288.4),
}
OWN = {"name", "title", "output", "backbone"}
TABLE_1 = {"base": 119.6, "large": 276.9, "1b": 1147.2}


def all_but_the_backbone(name: str) -> dict[str, Any]:
    return read_recipe(name).model_dump(mode="json", exclude=OWN)


def header(name: str) -> str:
    text = find_recipe(name).read_text(encoding="utf-8")
    return re.sub(r"\s+# ", " ", text.partition("\nbase:")[0])


def parameters(name: str) -> int:
    with torch.device("meta"):
        model = build_model(read_recipe(name))
    real = sum(parameter.numel() for parameter in model.parameters())
    assert real == derived_numbers(read_recipe(name))["params_total"]
    return real


@pytest.mark.parametrize("family", TABLE_6)
def test_a_row_of_table_6_is_as_the_paper_has_it(family):
    top1, preset, printed, millions = TABLE_6[family]
    name = f"arch_{family}"
    recipe = read_recipe(f"recipes/{name}.yaml")
    assert recipe.backbone == type(recipe.backbone).model_validate({"preset": preset})
    assert recipe.backbone.registered_name == family
    assert parameters(name) / 1e6 == pytest.approx(millions, abs=0.05)
    assert millions == pytest.approx(printed, rel=0.03)
    assert all_but_the_backbone(name) == all_but_the_backbone("ablation_dvae16")
    assert f": {top1} %" in header(name)
    assert f"{millions}M parameters" in header(name)
    assert "Measured:" in header(name)


@pytest.mark.parametrize("family", TABLE_6)
def test_small_rows_differ_in_the_family_alone(family):
    name = f"arch_{family}_small"
    assert read_recipe(name).backbone.registered_name == family
    assert all_but_the_backbone(name) == all_but_the_backbone("ablation_vqgan1k_small")
    assert parameters(name) == pytest.approx(parameters("arch_llama_small"), rel=0.06)
    assert f": {TABLE_6[family][0]} %" in header(name)


@pytest.mark.parametrize("preset", TABLE_1)
def test_pre_training_is_as_published(preset):
    recipe = read_recipe(f"pretrain_{preset}")
    assert recipe.backbone == LlamaConfig(preset=preset)
    assert recipe.tokenizer.weights == "official:dvae"
    assert recipe.layout.num_visual == 4096
    assert (recipe.clip.frames, recipe.clip.stride, recipe.clip.resolution) == (16, 4, 128)
    weights = {name: source.weight for name, source in recipe.data.sources.items()}
    assert weights == {"imagenet": 20, "kinetics600": 10, "ego4d": 10, "howto100m": 60}
    assert recipe.training.batch_tokens == 2**20
    assert recipe.training.steps == 1_000_000
    assert (recipe.optimizer.lr, recipe.optimizer.betas) == (3e-4, (0.9, 0.95))
    assert recipe.schedule.warmup_steps == 2000
    millions = TABLE_1[preset]
    assert parameters(f"pretrain_{preset}") / 1e6 == pytest.approx(millions, abs=0.05)
    assert f"{millions}M parameters" in header(f"pretrain_{preset}")


def test_mamba_alone_reads_past_its_clip():
    limits = {family: read_recipe(f"arch_{family}").context_frames for family in TABLE_6}
    assert limits == {"gpt2": 16, "llama": 16, "mamba": None}
