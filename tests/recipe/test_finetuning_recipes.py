"""The rows of the paper's Table 4, full fine-tuning (Table 13), and their small versions."""

from __future__ import annotations

import pytest
import torch

from toto.analysis.paper import paper
from toto.analysis.plan import table4_macs
from toto.backbones.config import LlamaConfig
from toto.errors import RecipeError
from toto.jobs.trained import build_model
from toto.model_size import ModelSize
from toto.recipe.derived import derived_numbers
from toto.recipe.reader import find_recipe, read_recipe
from toto.tasks.config import ClassifyConfig, Labels, ModelParts, NextTokenProbesConfig
from toto.tokenizers.config import PatchConfig

IMAGES = 1_281_167  # of ImageNet-1k, §4.1

# Row → epochs, side of the grid, RoPE base, the paper's compute in all and its top-1 in %.
TABLE_4 = {
    "resolution_16": (400, 16, 1e4, "1.42e+17", 53.2),
    "resolution_32": (400, 32, 1e4, "5.68e+17", 61.2),
    "resolution_16to32": (50, 32, 1e4, "2.13e+17", 63.2),
    "resolution_16to32_rope50k": (50, 32, 5e4, "2.13e+17", 64.4),
    "resolution_16to32_1epoch": (1, 32, 5e4, "1.43e+17", None),
}
CLASSES = {"finetune_full": 1000, "finetune_full_small": 100}
SMALL = [f"{name}_small" for name in TABLE_4 if not name.endswith("1epoch")]


def compute(name: str) -> float:
    """As Table 4 counts it, of the run alone."""
    recipe = read_recipe(name)
    size = ModelSize.of(recipe.tokenizer, recipe.backbone, recipe.target_tokenizer)
    tokens = recipe.training.steps * recipe.batch_sequences * recipe.layout.num_visual
    return table4_macs(size.total, tokens)


@pytest.mark.parametrize("name", TABLE_4)
def test_a_row_of_table_4_is_as_the_paper_has_it(name):
    epochs, side, rope_base, macs, top1 = TABLE_4[name]
    recipe = read_recipe(f"recipes/{name}.yaml")
    assert recipe.backbone == LlamaConfig(preset="large", rope_base=rope_base)
    assert (recipe.layout.height, recipe.layout.width) == (side, side)
    assert recipe.layout.num_visual == 4096
    pictures = recipe.batch_sequences * recipe.clip.frames
    assert recipe.training.steps == round(epochs * IMAGES / pictures)
    assert recipe.init_from == ("runs/resolution_16" if "to" in name else None)
    before = compute("resolution_16") if recipe.init_from else 0.0
    assert f"{before + compute(name):.2e}" == macs
    header = find_recipe(name).read_text(encoding="utf-8").partition("\nbase:")[0]
    assert "Measured:" in header
    assert macs.replace("e+17", " · 10^17") in header.replace("\n# ", " ")
    assert top1 is None or f"{top1} %" in header


@pytest.mark.parametrize("name", SMALL)
def test_small_rows_keep_the_proportions(name):
    full, small = read_recipe(name.removesuffix("_small")), read_recipe(name)
    assert small.backbone == LlamaConfig(preset="small", rope_base=full.backbone.rope_base)
    assert small.layout.height * 2 == full.layout.height
    low, low_full = (read_recipe(f"resolution_16{end}") for end in ("_small", ""))
    ratio = compute(name) / compute("resolution_16_small")
    assert ratio == pytest.approx(
        compute(name.removesuffix("_small")) / compute("resolution_16"), rel=0.01
    )
    assert small.optimizer.lr / low.optimizer.lr == pytest.approx(
        full.optimizer.lr / low_full.optimizer.lr
    )
    assert small.init_from == (full.init_from and "runs/resolution_16_small")
    assert derived_numbers(small)["tokens"] < 2e6  # minutes on a core


@pytest.mark.parametrize("name", CLASSES)
def test_a_model_that_classifies_is_built_of_its_recipe(name):
    recipe, classes = read_recipe(name), CLASSES[name]
    assert isinstance(recipe.task, ClassifyConfig)
    with torch.device("meta"):
        tokenizer, labels = PatchConfig(patch_size=8).build(), Labels((0,), classes, is_image=True)
        task = recipe.task.build(ModelParts(build_model(recipe), tokenizer, None, 1, labels))
    weights = dict(task.trainable.named_parameters())
    assert weights["classifier.linear.weight"].shape == (classes, recipe.backbone.width)
    total = sum(weight.numel() for weight in weights.values())
    assert total == derived_numbers(recipe)["params_total"] + classes * (recipe.backbone.width + 1)
    scales = task.lr_scales(recipe.optimizer)
    decay, depth = recipe.optimizer.layer_decay, recipe.backbone.num_layers
    assert scales["interface.embedding.weight"] == pytest.approx(decay ** (depth + 1))


def test_table_13_is_of_the_base_model_under_full_attention():
    recipe = read_recipe("finetune_full")
    assert recipe.backbone == LlamaConfig(preset="base", rope_base=50_000)
    assert recipe.mask.name == "full"
    assert recipe.layout.num_visual == 1024
    assert recipe.batch_sequences == 1024
    assert recipe.training.steps == round(100 * IMAGES / 1024)
    assert "82.6 %" in find_recipe("finetune_full").read_text(encoding="utf-8")


def test_a_tokenizer_has_no_layers_whose_rates_fall():
    with pytest.raises(RecipeError, match=r"optimizer\.layer_decay: a tokenizer has no layers"):
        read_recipe("tokenizer_dvae_tiny", ["optimizer.layer_decay=0.5"])


def test_what_is_not_computed_does_not_count():
    blocks = read_recipe("finetune_full_small").backbone.forward_macs(65)
    for change, share in (([], 1.0), (["task.layer=3"], 0.5), (["task.layer=0"], 0.0)):
        numbers = derived_numbers(read_recipe("finetune_full_small", change))
        assert numbers["forward_macs_per_sequence"] == share * blocks


@pytest.mark.parametrize(("size", "top1"), [("base", 64.7), ("large", 71.1), ("1b", 75.3)])
def test_table_7_is_the_protocol_of_section_4_2(size, top1):
    recipe = read_recipe(f"finetune_imagenet_{size}")
    assert recipe.backbone == LlamaConfig(preset=size, rope_base=50_000)
    assert recipe.init_from == f"runs/pretrain_{size}"
    assert (recipe.layout.height, recipe.layout.width) == (32, 32)
    assert (recipe.optimizer.lr, recipe.optimizer.layer_decay) == (6e-5, 0.9)
    assert isinstance(recipe.task, NextTokenProbesConfig)
    probes = recipe.task.probes
    assert probes is not None
    assert [head.registered_name for head in probes.heads] == ["attention"]
    assert probes.learning_rates == (6e-5,)
    images = recipe.training.steps * recipe.batch_sequences * recipe.clip.frames
    assert images / IMAGES == pytest.approx(90, abs=1e-3)
    assert f"{top1} %" in find_recipe(f"finetune_imagenet_{size}").read_text(encoding="utf-8")
    (table,) = (entry for entry in paper() if entry.name == "Table 7")
    (row,) = (row for row in table.rows if row.recipe == f"finetune_imagenet_{size}")
    assert row.paper == (top1,)
