"""However a run ends, or its output does: nothing is lost, no process is left, the code says it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, start_toto, toto, write_recipe
from tiny_runs import tiny_recipe

from toto.jobs.sources import root_explained

LIMIT_SECONDS = 15


def run_in_session(*words: object, cwd: Path, **options) -> subprocess.Popen[bytes]:
    """A command in a session of its own, so that every process of it can be found."""
    options = {"env": ENVIRONMENT, "start_new_session": True} | options
    return subprocess.Popen([sys.executable, *map(str, words)], cwd=cwd, **options)


def alive_in_session(session: int) -> list[int]:
    """The processes of a session, zombies left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("step-*[0-9]"))


def history(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


# What a plug-in of the user does at step 5: the trainer's own code, so it is neither foreseen.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from toto.training.engine_local import LocalEngine
import multiprocessing
plain = LocalEngine.step
def step(self, batches):
    if self.steps_done == 5:
        Path("failed").write_text(str(time.time()))
        {trigger}
    return plain(self, batches)
LocalEngine.step = step
from toto.cli.main import main
main()
"""
TRIGGERS = {
    "error": "raise ValueError('a bug')",
    "memory": "raise torch.OutOfMemoryError('no memory')",
    "base": "raise type('Cancelled', (BaseException,), {})",  # as asyncio's and trio's are
    "exit": "sys.exit(0)",
    "worker": "os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)",
}


@pytest.mark.parametrize(
    ("trigger", "workers", "says"),
    [
        ("error", 0, "ValueError: a bug"),
        ("error", 2, "ValueError: a bug"),
        ("memory", 1, "OutOfMemoryError: no memory"),
        ("base", 0, "Cancelled"),
        ("exit", 2, "something called sys.exit(0) while training"),
        ("worker", 2, "loader process"),
    ],
)
def test_whatever_ends_a_run_saves_the_last_step_and_leaves_no_process(
    tmp_path, tiny_datasets, trigger, workers, says
):
    raw = tiny_recipe(tiny_datasets, steps=400, save_every=400, eval_every=400, baselines=False)
    recipe = write_recipe(tmp_path, raw)
    program = PROGRAM.format(trigger=TRIGGERS[trigger])
    words = ("train", recipe, "--set", f"data.workers={workers}")
    process = run_in_session("-c", program, *words, cwd=tmp_path, stderr=subprocess.PIPE)
    stderr = process.communicate(timeout=90)[1].decode()
    ended = time.time()
    assert process.returncode == 1, stderr
    assert says in stderr
    assert ended - float((tmp_path / "failed").read_text()) < LIMIT_SECONDS
    assert alive_in_session(process.pid) == []
    # The death of a loader process is noticed after the step that is under way.
    step = 6 if trigger == "worker" else 5
    assert checkpoints(tmp_path / "runs/tiny") == [f"step-{step:08d}"]
    assert history(tmp_path / "runs/tiny")[-1]["state"] == "failed"
    assert f"the steps before it are saved in runs/tiny/checkpoints/step-{step:08d}" in stderr


@pytest.mark.parametrize("code", ["0", "'\\x1b[31mred'"])
def test_a_plug_in_that_exits_is_no_success(tmp_path, tiny_datasets, code):
    """`train && probe` would go on without a run, and nothing would say why."""
    (tmp_path / "script.py").write_text(f"import sys\nsys.exit({code})\n")
    raw = tiny_recipe(tiny_datasets) | {"imports": ["script.py"]}
    ended = toto("train", write_recipe(tmp_path, raw), cwd=tmp_path, code=1)
    assert 'script.py", line 2' in ended.stderr
    assert "SystemExit: " in ended.stderr
    assert "\x1b" not in ended.stderr


def test_a_pipe_and_a_terminal_that_close_do_not_end_training(tmp_path, tiny_datasets):
    """`toto train ... | head -1`, and a dead ssh connection; files have the modes of the umask."""
    recipe = write_recipe(tmp_path, tiny_recipe(tiny_datasets, steps=40, save_every=20))
    process = run_in_session(
        "-m", "toto.cli", "train", recipe, cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, umask=0o027,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith(b"step 2/"):
            break
    process.stdout.close()
    os.killpg(process.pid, signal.SIGHUP)
    stderr = process.stderr.read()
    assert process.wait(timeout=60) == 0, stderr
    assert stderr == b""
    run = tmp_path / "runs/tiny"
    assert checkpoints(run)[-1] == "step-00000040"
    assert history(run)[-1]["state"] == "done"
    modes = {path: path.stat().st_mode & 0o777 for path in run.rglob("*")}
    wrong = {str(p): oct(m) for p, m in modes.items() if m != (0o750 if p.is_dir() else 0o640)}
    assert not wrong


@pytest.mark.parametrize("gpus", [(), ("--gpus", "2")])
def test_ctrl_c_saves_and_exits_with_130(tmp_path, tiny_datasets, gpus):
    raw = tiny_recipe(tiny_datasets, steps=4000, save_every=4000, eval_every=4000, device="cpu")
    process = start_toto("train", write_recipe(tmp_path, raw), *gpus, cwd=tmp_path)
    printed = []
    for line in process.stdout:
        printed.append(line)
        if line.startswith("step 3/"):
            process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130, printed
    said = "".join(printed)
    assert said.count("stopped: Ctrl-C came, and nothing is lost") == 1
    assert "Traceback" not in said
    assert len(checkpoints(tmp_path / "runs/tiny")) == 1
    assert history(tmp_path / "runs/tiny")[-1]["state"] == "stopped"


def test_a_finished_run_says_so_and_does_nothing(tmp_path, tiny_datasets):
    recipe = write_recipe(tmp_path, tiny_recipe(tiny_datasets, steps=3))
    toto("train", recipe, cwd=tmp_path)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/tiny").rglob("*")}
    ended = toto("train", recipe, "--resume", cwd=tmp_path)
    assert "runs/tiny is finished: 3 steps" in ended.stdout
    assert "baselines" not in ended.stdout
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/tiny").rglob("*")}
    assert after == files


def test_baselines_are_counted_once_and_not_where_they_are_switched_off(tmp_path, tiny_datasets):
    recipe = write_recipe(tmp_path, tiny_recipe(tiny_datasets, steps=6, save_every=2))
    first = toto("train", recipe, cwd=tmp_path)
    assert "counting tokens of videos" in first.stdout
    run = tmp_path / "runs/tiny"
    stored = json.loads((run / "baselines.json").read_text())
    assert stored["videos"]["of"]["tokens"] == 6 * 256  # not more than the run trains on
    expected = metrics_of_evaluations(run)
    assert expected[-1]["copy"] == stored["videos"]["losses"]["copy"]
    undo_the_end(run, 4)
    resumed = toto("train", recipe, "--resume", cwd=tmp_path)
    assert "counting tokens" not in resumed.stdout
    assert metrics_of_evaluations(run) == expected
    # Counted again where they would be others: here of other validation sequences.
    stored["videos"]["of"]["validation_sequences"] = 1
    stored["videos"]["losses"]["copy"] = 99.0
    (run / "baselines.json").write_text(json.dumps(stored))
    undo_the_end(run, 4)
    assert "counting tokens" in toto("train", recipe, "--resume", cwd=tmp_path).stdout
    assert metrics_of_evaluations(run) == expected
    without = ("--output", "runs/without", "--set", "training.baselines=false")
    ended = toto("train", recipe, *without, cwd=tmp_path)
    assert "counting tokens" not in ended.stdout
    assert "copy" not in metrics_of_evaluations(tmp_path / "runs/without")[-1]


def undo_the_end(run: Path, step: int) -> None:
    """Make the run what a kill after a checkpoint leaves."""
    for path in (run / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    (run / "checkpoints/latest").write_text(f"step-{step:08d}\n")


def metrics_of_evaluations(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["sources"]["videos"] for line in lines if line["kind"] == "eval"]


def test_a_relative_data_root_from_another_folder_names_both(tmp_path, tiny_datasets):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "there/data").symlink_to(tiny_datasets)
    raw = tiny_recipe(Path("data"), steps=3)
    recipe = write_recipe(tmp_path, raw)
    toto("train", recipe, "--output", tmp_path / "run", cwd=tmp_path / "there")
    before, now = tmp_path / "there/data", tmp_path / "here/data"
    said = f"{now} now, and {before} when the run was started, in {tmp_path / 'there'}"
    verbs = [("probe",), ("finetune",), ("report",), ("generate", "--prompt-frames", "1")]
    for verb, *options in verbs:
        ended = toto(verb, tmp_path / "run", *options, cwd=tmp_path / "here", code=2)
        assert re.search(r"no dataset at data/videos-|no folder data in the", ended.stderr)
        assert said in ended.stderr, verb
    undo_the_end(tmp_path / "run", 3)
    (tmp_path / "run/history.jsonl").write_text(json.dumps(history(tmp_path / "run")[0]) + "\n")
    resume = ("train", recipe, "--output", tmp_path / "run", "--resume")
    assert said in toto(*resume, cwd=tmp_path / "here", code=2).stderr
    with chdir(tmp_path / "there"), root_explained("data", tmp_path / "run"):
        pass
