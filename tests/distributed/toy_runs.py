"""Whole training runs of several ranks with DeepSpeed, on the tiny datasets."""

from __future__ import annotations

import json
import time
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from toto.jobs.train import run_training
from toto.recipe.reader import check_recipe

if TYPE_CHECKING:
    from pathlib import Path

# What a line of metrics.jsonl says of the machine rather than of the model.
TIMES = ("seconds", "tokens_per_s", "data_wait", "utilisation", "memory", "save_seconds")
PATIENCE_SECONDS = 240  # for a machine that others use too


def toy_recipe(data_root: Path, output: Path, *, precision: str = "fp32", **training: Any) -> dict:
    """A recipe of 16 steps that saves at every second one; without validation, which takes long."""
    return {
        "verb": "train",
        "name": "toy",
        "output": str(output),
        "seed": 3,
        "tokenizer": {
            "name": "dvae",
            "weights": "random:0",
            "num_codes": 32,
            "width": 8,
            "blocks_per_group": 1,
            "decoder_stem": 8,
        },
        "backbone": {"name": "llama", "preset": "tiny", "num_layers": 1},
        "clip": {"frames": 4, "stride": 2, "resolution": 32},
        "data": {
            "root": str(data_root),
            "workers": 0,
            "sources": {
                "videos": {"path": "videos-train", "weight": 3},
                "pictures": {"path": "pictures", "weight": 1},
            },
        },
        "schedule": {"warmup_steps": 1},
        "training": {
            "steps": 16,
            "batch_tokens": 5 * 4 * 16,
            "micro_batch": 2,
            "precision": precision,
            "compile": False,
            "device": "cpu",
            "log_every": 1,
            "save_every": 2,
            "eval_every": 1_000,
        }
        | training,
    }


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
