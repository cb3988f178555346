"""What may change when a run is resumed, and what is refused with the reason."""

from __future__ import annotations

import json

import pytest
from command_line import toto, write_recipe
from tiny_runs import tiny_recipe

from toto.jobs.setup import _free_to_change, _notes_on_ranks
from toto.recipe.reader import read_recipe

ALWAYS = {"training.log_every", "training.deepspeed.zero_stage", "output"}


@pytest.mark.parametrize(
    ("name", "overrides", "reason"),
    [
        ("quickstart", [], None),
        ("finetune_full", [], "task.mixup mixes the clips of a micro-batch"),
        ("finetune_full_small", [], "task.drop_path draws numbers for each micro-batch"),
        ("finetune_full_small", ["task.drop_path=0"], None),
        ("tokenizer_dvae_tiny", [], "task.usage_weight weighs"),
        ("tokenizer_dvae_tiny", ["task.usage_weight=0"], "the noise of the relaxed codes"),
        ("tokenizer_vqgan1k_small", [], "task.restart_after counts micro-batches"),
        ("tokenizer_vqgan1k_small", ["task.restart_after=null"], "the discriminator's BatchNorm"),
    ],
)
def test_the_micro_batch_is_free_only_where_it_changes_nothing_but_rounding(
    name, overrides, reason
):
    recipe = read_recipe(name, overrides)
    free, effect = _free_to_change(recipe), recipe.task.micro_batch_effect
    assert free >= ALWAYS
    assert "training.deepspeed.extra" not in free
    assert ("training.micro_batch" in free) == (reason is None)
    assert effect is None if reason is None else reason in str(effect)
    assert "training.compile" not in free or not recipe.task.compiles


def test_a_refusal_names_the_reason(tmp_path, tiny_datasets):
    task = {"name": "classify", "drop_path": 0.1}
    raw = tiny_recipe(tiny_datasets, steps=2) | {
        "task": task,
        "clip": {"frames": 1, "resolution": 32},
    }
    raw["data"]["sources"] = {"videos": {"path": "videos-train", "validation": "videos-val"}}
    raw["training"] |= {"batch_tokens": 64}
    recipe = write_recipe(tmp_path, raw)
    toto("train", recipe, "--output", "run", cwd=tmp_path)
    again = ("train", recipe, "--output", "run", "--resume", "--set", "training.steps=2")
    done = toto(*again, "--set", "training.micro_batch=1", cwd=tmp_path, code=2)
    message = " ".join(done.stderr.split())
    assert "add --set training.micro_batch=2 or start another run with --output" in message
    assert "training.micro_batch: 2 before, 1 now (task.drop_path draws numbers for" in message


def test_another_number_of_ranks_is_said_where_it_changes_more_than_rounding(
    tmp_path, tiny_datasets
):
    assert _notes_on_ranks(read_recipe("quickstart", []), before=1, now=2) == []
    mixed = read_recipe("finetune_full", [])
    assert _notes_on_ranks(mixed, before=2, now=2) == []
    (note,) = _notes_on_ranks(mixed, before=1, now=2)
    assert "1 rank, and has 2 now" in note
    assert note.endswith("task.mixup mixes the clips of a micro-batch")

    raw = tiny_recipe(tiny_datasets, steps=1) | {
        "verb": "tokenizer", "task": {"name": "dvae"}, "clip": {"frames": 1, "resolution": 32},
    }  # fmt: skip
    del raw["backbone"]
    raw["tokenizer"].pop("weights")
    raw["training"] |= {"batch_tokens": 32, "save_every": 1}
    raw["schedule"] = {"warmup_steps": 0}
    recipe = write_recipe(tmp_path, raw)
    begun = ("tokenizer", "train", recipe, "--output", "run")
    toto(*begun, cwd=tmp_path)
    # As if two ranks had trained it, and had been killed before they said that it was done.
    (tmp_path / "run/history.jsonl").unlink()
    path = tmp_path / "run/checkpoints/step-00000001/checkpoint.json"
    meta = json.loads(path.read_text())
    meta["versions"]["ranks"] = 2
    path.write_text(json.dumps(meta))
    done = toto(*begun, "--resume", cwd=tmp_path)
    assert "note: the run had 2 ranks, and has 1 now" in done.stdout
