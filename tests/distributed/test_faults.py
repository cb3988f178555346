"""Ranks that are killed at random moments, saving included: the curve is the undisturbed one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rank_processes import launched, started
from toy_runs import toy_recipe, train_lines, train_rank, wait_for_step

from toto.files import PARTIAL
from toto.recipe.yaml_reader import dump_yaml
from toto.training.checkpoint import verify
from toto.training.checkpoint_folder import complete_checkpoints

pytestmark = pytest.mark.distributed

KILLS = int(os.environ.get("TOTO_TEST_KILLS", "20"))


def unfinished(run: Path) -> list[str]:
    """What the checkpoints' folder has of a save that was cut off."""
    return [path.name for path in (run / "checkpoints").glob(f"*{PARTIAL}")]


def last_step(run: Path) -> int:
    return max((line["step"] for line in train_lines(run)), default=0)


def test_two_kills_leave_no_trace(tmp_path, tiny_datasets):
    raw = toy_recipe(tiny_datasets, tmp_path / "run", save_every=1)
    said = tmp_path / "said"
    for turn, step in enumerate(sorted(random.sample(range(2, 14), 2))):
        ranks = started(2, train_rank, raw, said, turn > 0)
        wait_for_step(tmp_path / "run", step)
        time.sleep(random.uniform(0, 0.05))
        # The other one next, for it would wait 30 s for a checkpoint that may still become whole.
        for rank in random.sample(ranks, 2):
            rank.process.kill()
            rank.process.join()
            assert not rank.outcome()[0]
        verify(complete_checkpoints(tmp_path / "run/checkpoints")[-1])
    assert launched(2, train_rank, raw, said, True) == [16, 16]
    launched(2, train_rank, raw | {"output": str(tmp_path / "whole")}, said, False)
    assert train_lines(tmp_path / "run") == train_lines(tmp_path / "whole")


def rank_pids(launcher: int) -> list[int]:
    """The ranks of `--gpus`, in their order; empty as long as they are not all there."""
    try:
        children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    except OSError:
        return []
    return [int(pid) for pid in children]


def kill_one(run: Path, begun_at: int, launcher: subprocess.Popen) -> dict:
    """Kill a rank or the launcher at a random moment, and wait until all are gone."""
    if random.random() < 0.2:
        time.sleep(random.uniform(0, 6))  # while it starts
    else:
        assert any(line.startswith("step ") for line in launcher.stdout), "it ended by itself"
        time.sleep(random.uniform(0, 2))
    ranks = rank_pids(launcher.pid)
    who = random.choice(["rank 0", "rank 1", "launcher"])
    target = dict(zip(("rank 0", "rank 1"), ranks, strict=False)).get(who, launcher.pid)
    os.kill(target, signal.SIGKILL)
    said = launcher.communicate()[0]
    assert launcher.returncode == (-signal.SIGKILL if target == launcher.pid else 1), said
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in ranks):
        assert time.monotonic() < until, "a rank has outlived its launcher"
        time.sleep(0.05)
    return {
        "killed": who if target != launcher.pid else "launcher",
        "at step": last_step(run),
        "begun at": begun_at,
        "in a save": bool(unfinished(run)),
    }


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_twenty_kills_leave_no_trace(tmp_path, tiny_datasets):
    """Run it with -s to see what was killed, and when: docs/records/faults.md."""
    steps = 40 * KILLS
    raw = toy_recipe(tiny_datasets, tmp_path / "run", save_every=1, steps=steps)
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(dump_yaml(raw))
    command = [sys.executable, "-m", "toto.cli", "train", str(recipe), "--gpus", "2"]

    def start(*options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    kills = []
    while len(kills) < KILLS:
        begun_at = max([0, *(int(p.name[5:]) for p in saved(tmp_path / "run"))])
        launcher = start(*["--resume"] * (tmp_path / "run").exists())
        try:
            kills.append(kill_one(tmp_path / "run", begun_at, launcher))
        finally:
            launcher.kill()
        print(json.dumps(kills[-1]), flush=True)
        for checkpoint in saved(tmp_path / "run"):
            verify(checkpoint)
    for options in (["--resume"], ["--output", str(tmp_path / "whole")]):
        last = start(*options)
        said = last.communicate()[0]
        assert last.returncode == 0, said
    killed, whole = train_lines(tmp_path / "run"), train_lines(tmp_path / "whole")
    assert [line["step"] for line in whole] == list(range(1, steps + 1))
    assert killed == whole
    assert sum(kill["in a save"] for kill in kills) > 0
    print(f"{steps} steps; last losses {killed[-1]['loss']} and {whole[-1]['loss']}", flush=True)


def saved(run: Path) -> list[Path]:
    return complete_checkpoints(run / "checkpoints") if (run / "checkpoints").exists() else []
