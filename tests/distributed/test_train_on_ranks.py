"""`toto train` on several ranks: the curves of one process, files written once, any resume."""

from __future__ import annotations

import io
import json
import os
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
import torch
from rank_processes import RankError, launched
from safetensors.torch import load_file
from tiny_runs import TIMES, tiny_recipe

from toto.errors import UserError
from toto.jobs.train import run_training
from toto.jobs.train_tokenizer import run_tokenizer_training
from toto.recipe.reader import check_recipe
from toto.training.checkpoint import complete_checkpoints

pytestmark = pytest.mark.distributed


def ranks_recipe(data_root: Path, output: Path, *, stage: int = 1, lr: float = 3e-4) -> dict:
    """5 sequences a step, which no number of ranks but 1 and 5 divides."""
    recipe = tiny_recipe(
        data_root,
        steps=6,
        batch_tokens=5 * 4 * 16,
        eval_every=3,
        eval_sequences=5,
        timeout_minutes=0.5,
        deepspeed={"zero_stage": stage},
    )
    return recipe | {"name": "tiny", "output": str(output), "optimizer": {"lr": lr}}


def run(recipe: dict, resume: bool) -> str:
    """What the run says on this rank."""
    said = io.StringIO()
    # As the fixture of the whole suite has it, in processes that know no fixtures.
    with redirect_stdout(said), mock.patch("toto.jobs.held_out.BASELINE_TOKENS", 2**12):
        run_training(check_recipe(recipe, "tiny"), resume=resume)
    return said.getvalue()


def lines(run: Path) -> list[dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key not in TIMES} for line in found]


def assert_same_curves(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.pop("kind") == theirs.pop("kind")
        assert ours.pop("source_loss", {}) == pytest.approx(
            theirs.pop("source_loss", {}), rel=1e-5, nan_ok=True
        )
        for source, values in theirs.pop("sources", {}).items():
            for name, value in values.items():
                assert ours["sources"][source][name] == pytest.approx(value, rel=1e-5), name
        ours.pop("sources", None)
        for values in (ours, theirs):
            for group in ("metrics", "source_loss"):
                values |= values.pop(group, {})
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, tiny_datasets):
    """The directory of a run of two ranks at stage 3, and what each said."""
    path = tmp_path_factory.mktemp("ranks") / "two"
    return path, launched(2, run, ranks_recipe(tiny_datasets, path, stage=3), False)


def test_two_ranks_train_as_one_process(tmp_path, tiny_datasets, two_ranks):
    torch.set_num_threads(1)
    run(ranks_recipe(tiny_datasets, tmp_path / "one"), False)
    expected = lines(tmp_path / "one")
    assert [line["step"] for line in expected if line["kind"] == "eval"] == [3, 6]
    assert {"unigram", "copy"} <= set(expected[3]["sources"]["videos"])
    path, (first, second) = two_ranks
    assert_same_curves(lines(path), expected)
    assert "2 ranks, each cpu, fp32" in first
    assert "DeepSpeed, ZeRO 3" in first
    assert "done: 6 steps" in first
    assert second == ""


@pytest.mark.parametrize("world", [1, 3])
def test_another_number_of_ranks_goes_on_with_the_same_batches(
    tmp_path, tiny_datasets, two_ranks, world
):
    path, _ = two_ranks
    shutil.copytree(path, tmp_path / "run")
    *_, last = complete_checkpoints(tmp_path / "run/checkpoints")
    shutil.rmtree(last)
    recipe = ranks_recipe(tiny_datasets, tmp_path / "run", stage=1)
    said = launched(world, run, recipe, True)
    assert f"resuming from {tmp_path}/run/checkpoints/step-00000003" in said[0]
    assert f"ranks 2 before, {world} now" in said[0]
    assert_same_curves(lines(tmp_path / "run"), lines(path))


def refused(recipe: dict, changed: dict) -> str:
    """Rank 1 has another recipe."""
    mine = changed if os.environ["RANK"] == "1" else recipe
    with pytest.raises(UserError) as error:
        run_training(check_recipe(mine, "tiny"), resume=False)
    return str(error.value)


def test_a_rank_with_another_recipe_is_refused_before_anything_is_written(tmp_path, tiny_datasets):
    recipe = ranks_recipe(tiny_datasets, tmp_path / "run")
    changed = ranks_recipe(tiny_datasets, tmp_path / "run", lr=1e-3)
    first, second = launched(2, refused, recipe, changed)
    assert first == second
    assert "rank 1 on " in first
    assert "the recipe's optimizer.lr is 0.001, not 0.0003" in first
    assert not (tmp_path / "run").exists()


def test_a_mistake_that_the_first_rank_finds_ends_all_with_its_message(tmp_path, tiny_datasets):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").touch()
    with pytest.raises(RankError) as error:
        launched(2, run, ranks_recipe(tiny_datasets, tmp_path / "run"), False)
    assert str(error.value).count(f"UserError: {tmp_path / 'run'} exists already") == 2


def tokenizer_recipe(data_root: Path, output: Path) -> dict:
    """A VQGAN whose step has no noise, and whose discriminator takes no part yet."""
    recipe = ranks_recipe(data_root, output, stage=0)
    del recipe["backbone"]
    return recipe | {
        "verb": "tokenizer",
        "tokenizer": {
            "name": "vqgan",
            "num_codes": 16,
            "code_dim": 4,
            "latent_dim": 8,
            "width": 8,
            "width_multipliers": [1, 1, 1, 2],
            "attention_levels": [],
            "blocks_per_level": 1,
            "norm_groups": 4,
        },
        "task": {"name": "vqgan", "discriminator_start": 99, "discriminator_layers": 1},
    }


def train_tokenizer(recipe: dict) -> dict:
    with redirect_stdout(io.StringIO()):
        return run_tokenizer_training(check_recipe(recipe, "tiny"), resume=False)


def test_two_ranks_train_a_tokenizer_as_one_process(tmp_path, tiny_datasets):
    torch.set_num_threads(1)
    expected = train_tokenizer(tokenizer_recipe(tiny_datasets, tmp_path / "one"))
    recipe = tokenizer_recipe(tiny_datasets, tmp_path / "two")
    first, second = launched(2, train_tokenizer, recipe)
    assert first == second
    assert first["all"] == pytest.approx(expected["all"], rel=1e-4)
    assert_same_curves(lines(tmp_path / "two"), lines(tmp_path / "one"))
    ours, theirs = (load_file(tmp_path / run / "tokenizer.safetensors") for run in ("two", "one"))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-5)

    recipe["training"]["deepspeed"]["zero_stage"] = 1
    recipe["output"] = str(tmp_path / "three")
    with pytest.raises(RankError, match="VqganTask needs all weights whole on each"):
        launched(2, train_tokenizer, recipe)
