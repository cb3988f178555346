"""Two ranks: whatever ends one of them ends both soon, and every process of theirs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import tiny_recipe

from toto.recipe.yaml_reader import dump_yaml

pytestmark = pytest.mark.distributed
LIMIT_SECONDS = 15

# Imported by each rank, as a plug-in is; on rank 1 the step with number 5 fails.
PLUGIN = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
import torch
from toto.training.engine_deepspeed import DeepSpeedEngine
plain = DeepSpeedEngine.step
def step(self, batches):
    if self.steps_done == 5 and os.environ["RANK"] == "1":
        Path("failed").write_text(str(time.time()))
        {trigger}
    return plain(self, batches)
DeepSpeedEngine.step = step
"""
TRIGGERS = {
    "error": "raise ValueError('a bug')",
    "exit": "sys.exit(0)",
    "worker": "multiprocessing.active_children()[0].kill()",
}


def alive(folder: Path) -> list[int]:
    """The processes whose environment names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"TOTO_TEST={folder}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except (OSError, ProcessLookupError):
            continue  # it has ended, or is another user's
    return found


@pytest.mark.parametrize(
    ("trigger", "workers", "says"),
    [
        ("error", 0, "ValueError: a bug"),
        ("error", 1, "ValueError: a bug"),
        ("exit", 2, "something called sys.exit(0) while training"),
        ("worker", 2, "loader process"),
    ],
)
def test_whatever_ends_a_rank_ends_the_run(tmp_path, tiny_datasets, trigger, workers, says):
    (tmp_path / "plugin.py").write_text(PLUGIN.format(trigger=TRIGGERS[trigger]))
    raw = tiny_recipe(
        tiny_datasets, steps=400, save_every=4, eval_every=400, baselines=False, device="cpu"
    )
    raw["data"]["workers"] = workers
    (tmp_path / "tiny.yaml").write_text(dump_yaml(raw | {"imports": ["plugin.py"]}))
    ended = subprocess.run(
        [sys.executable, "-m", "toto.cli", "train", "tiny.yaml", "--gpus", "2"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOTO_TEST": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=110,
    )
    took = time.time() - float((tmp_path / "failed").read_text())
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert says in ended.stderr
    assert took < LIMIT_SECONDS
    assert alive(tmp_path) == []
    # Each rank has a part of a checkpoint: one alone cannot save, the last whole one stays.
    names = [path.name for path in (tmp_path / "runs/tiny/checkpoints").glob("step-*[0-9]")]
    assert names == ["step-00000004"]
