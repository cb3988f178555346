"""toto runs, and what a run records of its starts, as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from command_line import ENVIRONMENT, start_toto, toto, toto_process, write_recipe
from tiny_runs import tiny_recipe

import toto as package
from toto.errors import RunError
from toto.jobs.history import End, append, read_history
from toto.jobs.runs import look_at


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_datasets):
    """A folder with a finished run of four steps."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = write_recipe(folder, tiny_recipe(tiny_datasets, steps=4))
    toto("train", recipe.name, "--set", "training.keep=3", cwd=folder)
    return folder


def endless_recipe(folder, tiny_datasets, *, save_every):
    """One that no test waits for; without held-out data it begins at once."""
    raw = tiny_recipe(tiny_datasets, steps=4000, save_every=save_every)
    del raw["data"]["sources"]["videos"]["validation"]
    return write_recipe(folder, raw)


def printed(folder, *arguments):
    return toto("runs", *arguments, cwd=folder).stdout


def states(folder):
    return json.loads(printed(folder, "--json"))


def test_without_runs_it_says_what_to_type(tmp_path):
    assert "no run in runs/. `toto train recipes/quickstart.yaml` begins one" in printed(tmp_path)
    assert states(tmp_path) == []
    refused = toto("runs", "elsewhere", cwd=tmp_path, code=2)
    assert "no folder elsewhere" in refused.stderr


def test_a_finished_run(finished):
    head, row = printed(finished).splitlines()
    assert head.split() == ["run", "recipe", "state", "step", "loss", "tokens/s", "left"]
    assert row.split()[:4] == ["runs/tiny", "tiny", "done", "4/4"]
    assert row.split()[-1] == "–"
    (state,) = states(finished)
    assert (state["state"], state["checkpoint"], state["resumable"]) == ("done", 4, False)
    assert state["command"] == "toto train tiny.yaml --set training.keep=3"
    assert printed(finished, "runs/tiny") == printed(finished)


def test_a_start_is_recorded(finished):
    start, end = read_history(finished / "runs/tiny")
    assert (start.asked.recipe, start.asked.overrides) == ("tiny.yaml", ("training.keep=3",))
    assert (start.folder, start.pid, start.steps) == (str(finished), os.getpid(), 4)
    assert (start.resumed_from, start.init_from) == (None, None)
    assert start.versions["toto"] == package.__version__
    assert start.peak["flops"] > 1e6
    assert start.peak["origin"].startswith("measured: ")
    assert (end.state, end.step, end.error) == ("done", 4, None)


def test_the_commit_and_the_parent_run_are_recorded(finished, tmp_path, tiny_datasets):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    recipe = write_recipe(tmp_path, tiny_recipe(tiny_datasets, steps=2))
    for command in (["init", "-q"], ["add", recipe.name], ["commit", "-qm", "recipe"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    parent = finished / "runs/tiny"
    toto("train", recipe, "--set", f"init_from={parent}", cwd=tmp_path)
    (start, _) = read_history(tmp_path / "runs/tiny")
    head = subprocess.run([*git, "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True)
    assert start.commits["folder"].commit == head.stdout.strip()
    assert start.commits["folder"].dirty is False
    assert start.init_from == str(parent / "checkpoints/step-00000004")
    recipe.write_text(recipe.read_text() + "# changed\n")
    history = tmp_path / "runs/tiny/history.jsonl"
    history.write_text(history.read_text().splitlines(keepends=True)[0])  # else it is finished
    raised = ["--set", "training.steps=2", "--resume", "--set", f"init_from={parent}"]
    toto("train", recipe, *raised, cwd=tmp_path)
    again = read_history(tmp_path / "runs/tiny")[1]
    assert again.commits["folder"].dirty is True
    assert again.resumed_from == "runs/tiny/checkpoints/step-00000002"


def test_a_second_start_is_refused_while_the_first_lives_and_reading_is_not(
    tmp_path, tiny_datasets
):
    recipe = endless_recipe(tmp_path, tiny_datasets, save_every=2)
    process = start_toto("train", recipe, cwd=tmp_path)
    try:
        for line in process.stdout:
            if line.startswith("step 5/"):
                break
        refused = toto("train", recipe, "--resume", cwd=tmp_path, code=2)
        assert f"runs/tiny is being trained in: by process {process.pid} on" in refused.stderr
        (state,) = states(tmp_path)
        assert state["state"] == "running"
        assert state["holder"]["pid"] == process.pid
        assert 5 <= state["step"] < 4000
        assert state["seconds_left"] > 0
        text = printed(tmp_path)
        assert f"runs/tiny: process {process.pid} on {state['holder']['host']}, since" in text
        toto("report", "runs/tiny", cwd=tmp_path)
        toto("generate", "runs/tiny", "--prompt-frames", "0", "--samples", "1", cwd=tmp_path)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
    (state,) = states(tmp_path)
    assert (state["state"], state["resumable"], state["seconds_left"]) == ("killed", True, None)
    command = f"toto train {recipe} --resume"
    assert f"runs/tiny: killed; `{command}` goes on from step" in printed(tmp_path)


def test_a_signal_stops_it(tmp_path, tiny_datasets):
    recipe = endless_recipe(tmp_path, tiny_datasets, save_every=4000)
    process = start_toto("train", recipe, cwd=tmp_path)
    for line in process.stdout:
        if line.startswith("step 2/"):
            process.terminate()
    assert process.wait(timeout=60) == 85
    (state,) = states(tmp_path)
    assert (state["state"], state["step"]) == ("stopped", state["checkpoint"])
    assert f"`toto train {recipe} --resume` goes on from step" in printed(tmp_path)


def test_an_error_is_told(tmp_path, tiny_datasets, monkeypatch):
    def fail(*arguments, **settings):
        raise RunError("no luck. Try again")

    monkeypatch.setattr("toto.jobs.train.train", fail)
    recipe = write_recipe(tmp_path, tiny_recipe(tiny_datasets))
    toto("train", recipe, cwd=tmp_path, code=1)
    state = look_at(tmp_path / "runs/tiny")
    assert (state.state, state.error, state.resumable) == (
        "failed",
        "RunError: no luck. Try again",
        False,
    )
    assert "runs/tiny: failed (RunError: no luck); `toto train" in printed(tmp_path)
    assert "--resume` goes on from the beginning\n" in printed(tmp_path)
    history = tmp_path / "runs/tiny/history.jsonl"
    history.write_text(history.read_text().replace('"ranks": 1', '"ranks": 2'))
    assert "--resume` goes on from the beginning, it ran on 2 ranks\n" in printed(tmp_path)


def test_a_run_without_history_and_one_whose_history_is_broken(finished, tmp_path):
    run = tmp_path / "runs/old"
    run.parent.mkdir()
    subprocess.run(["cp", "-r", finished / "runs/tiny", run], check=True)
    (run / "history.jsonl").unlink()
    (state,) = states(tmp_path)
    assert (state["state"], state["steps"], state["recipe"]) == ("done", 4, "tiny")
    (run / "history.jsonl").write_text("{}\n")
    (state,) = states(tmp_path)
    assert state["state"] == "unreadable"
    assert "history.jsonl:1: kind is None" in printed(tmp_path)


def test_a_torn_line_of_the_history_is_dropped(finished, tmp_path):
    before = (finished / "runs/tiny/history.jsonl").read_text()
    (tmp_path / "history.jsonl").write_text(before + '{"kind": "sta')
    append(tmp_path, End(time="now", state="done", step=5))
    assert [type(entry).__name__ for entry in read_history(tmp_path)] == ["Start", "End", "End"]


def test_it_takes_the_end_of_a_long_record_alone(finished, tmp_path):
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", finished / "runs/tiny", run], check=True)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    one = next(json.loads(line) for line in lines if json.loads(line)["kind"] == "train")
    with (run / "metrics.jsonl").open("w") as file:
        file.write("not read\n" * 100)
        for step in range(1, 2001):
            file.write(json.dumps(one | {"step": step, "seconds": step / 2}) + "\n")
    assert look_at(run).step == 2000


def test_it_imports_no_torch(finished):
    program = (
        "import sys; from toto.jobs.runs import list_runs; list_runs(None, as_json=False);"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=finished, env=ENVIRONMENT, check=True)
    toto_process("runs", cwd=finished)
