"""A killed run that is resumed is the undisturbed run: weights, optimizer, metrics."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
from command_line import start_toto, toto, toto_process, write_recipe
from tiny_runs import TIMES, tiny_recipe

from toto.errors import RunError
from toto.recipe.reader import check_recipe


def digests(run: Path) -> dict[str, str]:
    latest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in latest.glob("*.safetensors")
    }


def metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key not in TIMES} for line in lines]


def kill_after(process, step: int, sign: signal.Signals) -> str:
    """Signal the process and its workers once the step has been printed; all that was printed."""
    printed = []
    for line in process.stdout:
        printed.append(line)
        if line.startswith(f"step {step}/"):
            os.killpg(process.pid, sign)
    process.wait(timeout=60)
    return "".join(printed)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_after_sigkill_is_exact(tmp_path, tiny_datasets, precision):
    recipe = write_recipe(tmp_path, tiny_recipe(tiny_datasets, precision=precision))
    toto_process("train", recipe, "--output", "runs/whole", cwd=tmp_path)
    killed_at = random.randint(1, 7)
    process = start_toto("train", recipe, "--output", "runs/killed", cwd=tmp_path)
    kill_after(process, killed_at, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    # Workers load ahead in processes of their own: the order must not depend on them.
    toto_process(
        "train", recipe, "--output", "runs/killed", "--resume", "--set", "data.workers=2",
        cwd=tmp_path,
    )  # fmt: skip
    assert digests(tmp_path / "runs/killed") == digests(tmp_path / "runs/whole"), killed_at
    assert metrics(tmp_path / "runs/killed") == metrics(tmp_path / "runs/whole"), killed_at


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_kills_with_changing_workers_leave_no_trace(tmp_path, tiny_datasets):
    settings = {"steps": 24, "save_every": 2, "eval_every": 24}
    recipe = write_recipe(tmp_path, tiny_recipe(tiny_datasets, **settings))
    toto("train", recipe, "--output", "runs/whole", cwd=tmp_path)
    kills = sorted(random.sample(range(1, 24), 10))
    for turn, step in enumerate(kills):
        command = ["train", recipe, "--output", "runs/killed", "--set", f"data.workers={turn % 3}"]
        process = start_toto(*command, *["--resume"][:turn], cwd=tmp_path)
        printed = kill_after(process, step, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL, printed
    toto("train", recipe, "--output", "runs/killed", "--resume", cwd=tmp_path)
    assert digests(tmp_path / "runs/killed") == digests(tmp_path / "runs/whole"), kills
    assert metrics(tmp_path / "runs/killed") == metrics(tmp_path / "runs/whole"), kills


@pytest.mark.parametrize(("workers", "sign"), [(0, signal.SIGUSR1), (2, signal.SIGTERM)])
def test_a_scheduler_s_signal_saves_and_asks_to_be_queued_again(
    tmp_path, tiny_datasets, workers, sign
):
    recipe = write_recipe(tmp_path, tiny_recipe(tiny_datasets, steps=400, save_every=400))
    process = start_toto("train", recipe, "--set", f"data.workers={workers}", cwd=tmp_path)
    printed = kill_after(process, 5, sign)
    assert process.returncode == 85, printed
    assert f"stopped by {sign.name} after step" in printed
    assert "Exit code 85 asks the scheduler for the same command again" in printed
    assert "--resume" in printed
    assert "Traceback" not in printed
    assert len(list((tmp_path / "runs/tiny/checkpoints").glob("step-*"))) == 1


def test_a_tokenizer_that_was_stopped_leaves_no_weights_for_recipes(tmp_path, tiny_datasets):
    raw = tiny_recipe(tiny_datasets, steps=400, save_every=400) | {"verb": "tokenizer"}
    del raw["backbone"]
    raw["tokenizer"] |= {"weights": None}
    process = start_toto("tokenizer", "train", write_recipe(tmp_path, raw), cwd=tmp_path)
    printed = kill_after(process, 5, signal.SIGTERM)
    assert process.returncode == 85, printed
    assert not (tmp_path / "runs/tiny/tokenizer.safetensors").exists()


def test_a_run_that_exists_is_refused_with_the_command_to_type(tmp_path, tiny_datasets):
    recipe = write_recipe(tmp_path, tiny_recipe(tiny_datasets, steps=3))
    toto("train", recipe, cwd=tmp_path)
    before = digests(tmp_path / "runs/tiny")
    done = toto("train", recipe, cwd=tmp_path, code=2)
    assert f"toto train {recipe} --resume" in done.stderr
    done = toto("train", recipe, "--resume", "--set", "optimizer.lr=1e-5", cwd=tmp_path, code=2)
    assert "optimizer.lr: 0.0003 before, 1e-05 now" in done.stderr
    assert digests(tmp_path / "runs/tiny") == before


def test_a_run_is_not_resumed_on_other_data(tmp_path, tiny_datasets):
    shutil.copytree(tiny_datasets, tmp_path / "data")
    recipe = write_recipe(tmp_path, tiny_recipe(tmp_path / "data", steps=3))
    toto("train", recipe, cwd=tmp_path)
    (tmp_path / "runs/tiny/history.jsonl").unlink()  # else the run is finished
    (tmp_path / "data/pictures/excluded.jsonl").write_text('{"sample": 1}\n')
    done = toto("train", recipe, "--resume", cwd=tmp_path, code=2)
    assert "data.sources.pictures: not the data that" in done.stderr
    (tmp_path / "data/pictures/excluded.jsonl").unlink()
    toto("train", recipe, "--resume", cwd=tmp_path)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, tiny_datasets, monkeypatch):
    from toto.jobs.train import run_training
    from toto.training.checkpoint_writer import CheckpointWriter

    raw = tiny_recipe(tiny_datasets) | {"name": "full", "output": str(tmp_path / "full")}
    write = CheckpointWriter._write

    def full_from_step_6(writer, unfinished, state):
        files = write(writer, unfinished, state)
        if state.steps_done >= 6:
            raise OSError(28, "No space left on device")
        return files

    monkeypatch.setattr(CheckpointWriter, "_write", full_from_step_6)
    with pytest.raises(RunError, match="No space left"):
        run_training(check_recipe(raw, "full"), resume=False)
    left = sorted(path.name for path in (tmp_path / "full/checkpoints").iterdir())
    assert left == ["latest", "step-00000003"]


def test_a_run_from_before_a_field_existed_goes_on(tmp_path, tiny_datasets):
    recipe = write_recipe(tmp_path, tiny_recipe(tiny_datasets, steps=4))
    toto("train", recipe, "--set", "training.steps=4", cwd=tmp_path)
    for path in (tmp_path / "runs/tiny/checkpoints").glob("step-*/checkpoint.json"):
        meta = json.loads(path.read_text())
        del meta["recipe"]["mask"]
        del meta["recipe"]["training"]["recompute"]
        path.write_text(json.dumps(meta))
    (tmp_path / "runs/tiny/history.jsonl").unlink()  # else the run is finished
    toto("train", recipe, "--resume", cwd=tmp_path)
    refused = toto(
        "train", recipe, "--resume", "--set", "mask={name: per_image}", cwd=tmp_path, code=2
    )
    assert "mask.name: 'causal' before, 'per_image' now" in refused.stderr
