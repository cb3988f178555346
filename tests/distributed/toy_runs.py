"""Whole training runs of several ranks with DeepSpeed, on the tiny datasets."""

from __future__ import annotations

import json
import time
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from tiny_runs import TIMES, tiny_recipe

from toto.jobs.train import run_training
from toto.recipe.reader import check_recipe

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE_SECONDS = 240  # for a machine that others use too


def toy_recipe(data_root: Path, output: Path, *, precision: str = "fp32", **training: Any) -> dict:
    """A recipe of 16 steps that saves at every second one; without validation, which takes long."""
    shorter = {
        "steps": 16,
        "batch_tokens": 5 * 4 * 16,
        "precision": precision,
        "device": "cpu",
        "save_every": 2,
        "eval_every": 1_000,
    }
    recipe = tiny_recipe(data_root, **(shorter | training))
    recipe["data"]["workers"] = 0
    del recipe["data"]["sources"]["videos"]["validation"]
    return recipe | {"name": "toy", "output": str(output)}


def train_rank(raw: dict, said: Path, resume: bool) -> int:
    """One rank of a run; what it prints is appended to a file. The steps that it has then."""
    with said.open("a", buffering=1) as out, redirect_stdout(out):
        return run_training(check_recipe(raw, "toy"), resume=resume).step


def train_lines(run: Path) -> list[dict]:
    """What the run has recorded of the model, a line a step; a torn last line is left out."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [{key: line[key] for key in line if key not in TIMES} for line in lines]


def wait_for_step(run: Path, step: int) -> None:
    """Until the run has recorded a step."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not any(line["step"] >= step for line in train_lines(run)):
        assert time.monotonic() < until, f"no step {step} in {run}"
        time.sleep(0.02)
