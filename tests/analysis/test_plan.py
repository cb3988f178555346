"""Plans beside the paper's tables, beside the real modules, and beside counts by hand."""

from __future__ import annotations

import pytest
import torch

from toto.analysis.devices import DEVICES, find_device
from toto.analysis.gpu_memory import Setting
from toto.analysis.memory_terms import COLUMNS
from toto.analysis.plan import Cluster, Plan, parse_gpus, table4_macs
from toto.errors import UserError
from toto.model import AutoregressiveModel
from toto.recipe.reader import read_recipe, training_recipes
from toto.recipe.schemas import TrainRecipe
from toto.sequence import SequenceLayout

IMAGES, EPOCHS = 1_281_167, 400  # of ImageNet-1k (paper §4.1)

# Table 1, and its digits.
TABLE_1 = {"base": (120e6, 3), "large": (280e6, 2), "1b": (1.1e9, 2)}


def plan(name: str, *overrides: str, gpus: str = "8x8", device: str = "h200") -> Plan:
    recipe = read_recipe(name, list(overrides))
    assert isinstance(recipe, TrainRecipe)
    return Plan.of(recipe, Cluster.of(gpus, device, 0.4))


def digits(number: float, count: int) -> str:
    return f"{number:.{count - 1}e}"


@pytest.mark.parametrize("preset", TABLE_1)
def test_table_1(preset):
    paper, count = TABLE_1[preset]
    params = plan(f"recipes/pretrain_{preset}.yaml").size.total
    assert digits(params, count) == digits(paper, count)


def test_table_4():
    """16 × 16, 32 × 32, and the first one trained on at 32 × 32 for 50 epochs (P§4.2)."""
    low, high = plan("recipes/ablation_dvae16.yaml"), plan("recipes/ablation_dvae32.yaml")
    images_a_step = 2**20 // 1024
    later = f"training.steps={50 * IMAGES // images_a_step}"
    tuned = plan("recipes/ablation_dvae32.yaml", later)
    assert digits(low.compute.table4, 3) == "1.42e+17"
    assert digits(high.compute.table4, 3) == "5.68e+17"
    assert digits(low.compute.table4 + tuned.compute.table4, 3) == "2.13e+17"


@pytest.mark.parametrize("side", [16, 32])
def test_table_4_without_a_recipe(side):
    layout = SequenceLayout(1, side, side)
    params = plan("recipes/ablation_dvae16.yaml").size.total
    macs = table4_macs(params, EPOCHS * IMAGES * layout.num_visual)
    assert digits(macs, 3) == {16: "1.42e+17", 32: "5.68e+17"}[side]


@pytest.mark.parametrize("entry", training_recipes(), ids=lambda entry: entry.path.stem)
def test_every_recipe_of_a_model_has_a_plan_with_its_count(entry):
    recipe = read_recipe(str(entry.path))
    if not isinstance(recipe, TrainRecipe):
        return
    with torch.device("meta"):
        model = AutoregressiveModel(recipe.tokenizer, recipe.backbone, recipe.target_tokenizer)
    made = Plan.of(recipe, Cluster.of("2x4", "a100-40", 0.3))
    assert made.size.total == sum(parameter.numel() for parameter in model.parameters())
    assert all(one.moment is not None and one.moment.bytes > 0 for one in made.settings)


def test_compute_and_time_are_those_of_a_count_by_hand():
    made = plan("recipes/pretrain_1b.yaml", gpus="2x8")
    width, hidden, layers, length = 2048, 5632, 22, 4097
    matrices = length * layers * (4 * width**2 + 3 * width * hidden)
    attention = layers * width * length * (length + 1)
    readout = length * width * 8196
    assert made.compute.forward == matrices + attention + readout
    assert made.compute.training == 3 * made.compute.forward
    assert made.compute.recomputed == matrices + attention
    assert (made.share, made.micro_batch, made.micro_batches) == (16, 8, 2)
    first = next(one for one in made.settings if not one.setting.recompute)
    assert first.step_seconds == pytest.approx(
        2 * 3 * made.compute.forward * 256 / (16 * 0.4 * 989.4e12)
    )


def test_the_gpu_with_most_sequences_sets_the_pace():
    made = plan("recipes/pretrain_base.yaml", gpus="100")
    even = plan("recipes/pretrain_base.yaml", gpus="85")
    assert (made.share, even.share) == (3, 4)
    more = plan("recipes/pretrain_base.yaml", gpus="127")
    assert more.settings[0].step_seconds == made.settings[0].step_seconds


def test_zero_spreads_what_its_paper_says():
    made = plan("recipes/pretrain_1b.yaml", gpus="8x8")
    params = made.size.total
    stages = {one.setting.stage: one.moment for one in made.settings if one.setting.recompute}
    columns = {stage: {name: moment.column(name) for name in COLUMNS}
               for stage, moment in stages.items()}  # fmt: skip
    assert [columns[stage]["weights"] for stage in (0, 1, 2, 3)] == [
        4 * params, 4 * params, 4 * params, 4 * params // 64
    ]  # fmt: skip
    assert [columns[stage]["optimizer"] for stage in (0, 1, 2, 3)] == [
        8 * params, 12 * params // 64, 12 * params // 64, 12 * params // 64
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "stage", "column", "expected"),
    [
        ("bucket_elements=1000", 2, "buckets", 2 * 4 * 1000),
        ("overlap_comm=false", 2, "buckets", 4 * 100_000_000),
        ("offload_optimizer=true", 2, "optimizer", 0),
        ("overlap_comm=false", 1, "buckets", 4 * 100_000_000),
    ],
)
def test_deepspeeds_settings_count(change, stage, column, expected):
    made = plan("recipes/pretrain_1b.yaml", f"training.deepspeed.{change}")
    (found,) = (one for one in made.settings if one.setting == Setting(stage, False))
    assert found.moment.column(column) == expected


def test_checkpoints_that_are_kept_for_good_take_disk():
    made = plan("recipes/pretrain_base.yaml", "training.keep_every=100000")
    assert made.kept_checkpoints == 2 + 9  # the last of the ten is one of the newest, too
    assert made.disk_bytes == 12 * 12 * made.size.total


@pytest.mark.parametrize("steps", [3, 4, 19, 20, 21, 40, 41])
@pytest.mark.parametrize("keep", [1, 2, 5])
@pytest.mark.parametrize("keep_every", ["null", 4, 8, 20])
def test_kept_checkpoints_are_those_that_the_last_save_leaves(steps, keep, keep_every):
    settings = {"steps": steps, "keep": keep, "keep_every": keep_every, "save_every": 4}
    overrides = [f"training.{name}={value}" for name, value in settings.items()]
    made = plan("recipes/quickstart.yaml", *overrides, "schedule.warmup_steps=0")
    saved = sorted({*range(4, steps, 4), steps})
    for_good = () if keep_every == "null" else range(0, steps, keep_every)
    kept = {step for step in saved if step in for_good or step in saved[-keep:]}
    assert made.kept_checkpoints == len(kept)


def test_one_process_is_offered_for_one_gpu_alone():
    alone = plan("recipes/pretrain_base.yaml", gpus="1")
    assert [one.setting for one in alone.settings][:2] == [Setting(None, False), Setting(0, False)]
    assert all(one.setting.stage is not None for one in plan("recipes/pretrain_base.yaml").settings)


def test_what_does_not_fit_says_so():
    small = plan("recipes/pretrain_1b.yaml", gpus="1", device="l4")
    assert not any(one.fits for one in small.settings)
    assert any(one.fits for one in plan("recipes/pretrain_1b.yaml").settings)
    unknown = plan("recipes/pretrain_1b.yaml", gpus="1", device="cpu").settings[0]
    assert (unknown.fits, unknown.step_seconds) == (None, None)


@pytest.mark.parametrize("text", ["", "0", "8x0", "8x", "x8", "8x8x8", "-1", "eight", "1e3"])
def test_gpus_are_refused(text):
    with pytest.raises(UserError, match=r"nodes x GPUs of each, such as 4x8"):
        parse_gpus(text)


def test_gpus_are_read():
    assert parse_gpus("8x4") == (8, 4)
    assert parse_gpus("16") == (1, 16)


def test_unknown_devices_are_refused_with_the_list():
    with pytest.raises(UserError, match=r"--device h20O: unknown\. There are h100, h200") as caught:
        find_device("h20O")
    assert all(name in str(caught.value) for name in DEVICES)
    assert "Did you mean h200?" in str(caught.value)
