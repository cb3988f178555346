from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from toto import files
from toto.errors import RunError, UserError
from toto.training.lock import LOCK_FILE, hold_run, holder_of
from toto.training.rundir import open_run

COMMAND = "toto train toy.yaml"

HOLDER = """
import sys, time
from pathlib import Path
from toto.training.lock import hold_run
with hold_run(Path(sys.argv[1]), "toto train other.yaml"):
    print("held", flush=True)
    time.sleep(60)
"""
FORKING_HOLDER = """
import os, sys, time
from pathlib import Path
from toto.training.lock import hold_run
with hold_run(Path(sys.argv[1]), "toto train other.yaml"):
    if os.fork():
        print("held", flush=True)
    time.sleep(60)
"""


def start(folder, program=HOLDER):
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def other(tmp_path):
    process = start(tmp_path)
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_another_process_is_refused_by_name(tmp_path, other):
    with pytest.raises(UserError) as refused, hold_run(tmp_path, COMMAND):
        pass
    holder = json.loads((tmp_path / LOCK_FILE).read_text())
    assert str(refused.value).startswith(
        f"{tmp_path} is being trained in: by process {other.pid} on {holder['host']}, since "
        f"{holder['since']} UTC (`toto train other.yaml`)."
    )
    assert refused.value.exit_code == 2
    assert (holder_of(tmp_path).pid, holder_of(tmp_path).command) == (
        other.pid,
        "toto train other.yaml",
    )


@pytest.mark.parametrize("program", [HOLDER, FORKING_HOLDER], ids=["alone", "a child lives on"])
def test_a_killed_process_keeps_nobody_out(tmp_path, program):
    process = start(tmp_path, program)
    process.kill()
    process.wait()
    assert (tmp_path / LOCK_FILE).is_file(), "what a kill leaves"
    assert holder_of(tmp_path) is None
    assert open_run(tmp_path, resume=False, command=COMMAND).checkpoint is None, "no run yet"
    with hold_run(tmp_path, COMMAND) as alone:
        assert alone
        assert holder_of(tmp_path).pid == os.getpid()
    if program == FORKING_HOLDER:
        os.killpg(process.pid, signal.SIGKILL)


def test_the_same_process_is_refused_too_and_asking_does_not_let_go(tmp_path):
    with hold_run(tmp_path, COMMAND):
        assert holder_of(tmp_path).pid == os.getpid()
        with pytest.raises(UserError, match="is being trained in"), hold_run(tmp_path, COMMAND):
            pass
        program = HOLDER.replace("time.sleep(60)", "pass")
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True
        )
        assert f"by process {os.getpid()} on" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert holder_of(tmp_path) is None


def test_an_error_lets_go(tmp_path):
    with pytest.raises(RuntimeError), hold_run(tmp_path, COMMAND):
        raise RuntimeError
    with hold_run(tmp_path, COMMAND) as alone:
        assert alone


def test_where_the_file_system_knows_no_locks_the_run_goes_on_and_says_so(tmp_path, monkeypatch):
    def refuse(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "lockf", refuse)
    with hold_run(tmp_path, COMMAND) as alone:
        assert not alone
        assert (holder_of(tmp_path).pid, holder_of(tmp_path).command) == (os.getpid(), COMMAND)
    assert holder_of(tmp_path) is None, "`toto runs` would call it running for ever"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_refuses_is_a_run_error(tmp_path):
    with (
        pytest.raises(RunError, match="cannot be written"),
        hold_run(tmp_path / "gone", COMMAND),
    ):
        pass
