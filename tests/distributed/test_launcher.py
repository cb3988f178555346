"""`--gpus N`: the processes that it starts, their signals and their ends; ranks without torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toto.errors import Problem, RecipeError, RunError, StoppedError, UserError, raised_by_all
from toto.jobs import launcher
from toto.jobs.launcher import launched, run_ranks, tell

pytestmark = pytest.mark.distributed

# What each rank is, beside what a case makes of it.
RANK = """
import os, signal, sys, time
from toto.errors import DataError, RunError, StoppedError
from toto.jobs.launcher import launched, tell

assert not launched(2)
rank = int(os.environ["RANK"])

def end(error):
    tell(error)
    sys.exit(error.exit_code)

def save_and_end(*_):
    end(StoppedError("saved"))

"""


def rank_command(body: str) -> list[str]:
    return [sys.executable, "-c", RANK + body]


def ended(body: str, folder: Path, world: int = 3) -> BaseException:
    """What three ranks that run `body` end with."""
    with pytest.raises((RunError, UserError, StoppedError, KeyboardInterrupt)) as error:
        run_ranks(rank_command(body), world, folder)
    return error.value


def alive(folder: Path) -> list[int]:
    """The processes whose environment names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has just ended
            continue
    return found


def test_ranks_that_end_well_have_torchrun_s_variables_and_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    body = f"""
names = ["WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "OMP_NUM_THREADS"]
open({str(tmp_path)!r} + f"/said-{{rank}}", "w").write(" ".join(os.environ[n] for n in names))
"""
    run_ranks(rank_command(body), 2, tmp_path)
    threads = max(len(os.sched_getaffinity(0)) // 2, 1)
    said = [(tmp_path / f"said-{rank}").read_text() for rank in range(2)]
    assert said == [f"2 {rank} 127.0.0.1 {threads}" for rank in range(2)]


def test_a_mistake_of_all_is_raised_once_with_its_notes(tmp_path):
    body = """
error = DataError("there is no such dataset")
error.add_note("look twice")
end(error)
"""
    error = ended(body, tmp_path)
    assert type(error) is UserError
    assert str(error) == "there is no such dataset"
    assert error.__notes__ == ["look twice"]


RECIPE_ERROR = RecipeError("my.yaml", [Problem("seed", "no number", "Write one")])


@pytest.mark.parametrize(
    ("error", "rank", "local_rank", "says"),
    [
        (RECIPE_ERROR, "8", "0", True),  # the first of the second machine
        (RECIPE_ERROR, "9", "1", False),
        (raised_by_all(UserError("all differ")), "0", "0", True),
        (raised_by_all(UserError("all differ")), "8", "0", False),
        (UserError("no GPU"), "9", "1", True),
        (RECIPE_ERROR, "9", "", True),  # the variables are broken
    ],
)
def test_ranks_of_another_launcher_say_a_mistake_as_seldom_as_they_know(
    error, rank, local_rank, says, monkeypatch, capsys
):
    variables = {"WORLD_SIZE": "16", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in (variables | {"RANK": rank, "LOCAL_RANK": local_rank}).items():
        monkeypatch.setenv(name, value)
    tell(error)
    assert bool(capsys.readouterr().err) is says


def test_the_first_error_is_the_cause_and_the_others_are_ended(tmp_path):
    body = """
if rank == 1:
    end(RunError("the disk is full"))
if rank == 0:
    time.sleep(0.5)
    end(RunError("rank 1 cannot be reached"))
signal.signal(signal.SIGTERM, save_and_end)
time.sleep(60)
"""
    begun = time.monotonic()
    assert str(ended(body, tmp_path)) == "the disk is full"
    assert time.monotonic() - begun < launcher.NOTICE_SECONDS + 5
    assert alive(tmp_path) == []


def test_a_killed_rank_is_named(tmp_path):
    body = """
if rank == 2:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(0.3)
end(RunError("rank 2 cannot be reached"))
"""
    error = ended(body, tmp_path)
    assert type(error) is RunError
    assert "rank 2 was ended by SIGKILL, as the kernel does when memory runs out" in str(error)
    assert "--resume" in str(error)


def test_a_crash_is_named_and_stopped_ranks_are_woken_to_end(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(launcher, "NOTICE_SECONDS", 0.3)
    body = """
if rank == 1:
    time.sleep(0.5)
    sys.exit(1)
os.kill(os.getpid(), signal.SIGSTOP)
"""
    begun = time.monotonic()
    assert str(ended(body, tmp_path)).startswith("rank 1 ended with exit code 1")
    assert capfd.readouterr().err == (
        "rank 1 has ended with an error; the others are told to, by SIGTERM\n"
    )
    assert time.monotonic() - begun < 5


def test_a_rank_that_does_not_listen_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "NOTICE_SECONDS", 0.1)
    monkeypatch.setattr(launcher, "SAVE_SECONDS", 0.5)
    body = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if rank == 1:
    time.sleep(0.5)
    sys.exit(1)
time.sleep(60)
"""
    assert "rank 1 ended" in str(ended(body, tmp_path))
    assert alive(tmp_path) == []


# As a process of its own, which a test can signal.
PARENT = """
import signal, sys
from pathlib import Path
from toto.errors import TotoError
from toto.jobs.launcher import run_ranks
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    run_ranks({command!r}, 2, Path({folder!r}))
except TotoError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def started_parent(body: str, folder: Path) -> subprocess.Popen[str]:
    """A launcher of two ranks, which are ready for a signal."""
    ready = f"\nopen({str(folder)!r} + f'/ready-{{rank}}', 'w').close()\ntime.sleep(60)\n"
    program = PARENT.format(command=rank_command(body + ready), folder=str(folder))
    command = [sys.executable, "-c", program]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 15
    while len(list(folder.glob("ready-*"))) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    return parent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_passed_on_once(tmp_path, number):
    body = f"""
signal.signal({number}, lambda *_: (
    open({str(tmp_path)!r} + f"/heard-{{rank}}", "a").write("x"), time.sleep(0.5), save_and_end()
))
"""
    parent = started_parent(body, tmp_path)
    # A terminal's Ctrl-C reaches the whole group of the launcher; the ranks are not in it.
    os.killpg(parent.pid, number)
    assert parent.communicate()[0] == "saved\n"
    assert parent.returncode == 85
    assert [(tmp_path / f"heard-{rank}").read_text() for rank in range(2)] == ["x", "x"]


def test_a_warning_before_the_ranks_can_hear_asks_to_be_queued_again(tmp_path):
    parent = started_parent("", tmp_path)
    parent.send_signal(signal.SIGUSR1)
    assert "SIGUSR1 came, and nothing is lost" in parent.communicate()[0]
    assert parent.returncode == 85


def test_ctrl_c_before_the_ranks_can_hear_is_a_ctrl_c(tmp_path):
    parent = started_parent("signal.signal(signal.SIGINT, signal.SIG_DFL)", tmp_path)
    parent.send_signal(signal.SIGINT)
    parent.communicate()
    assert parent.returncode == -signal.SIGINT


def test_ranks_do_not_outlive_a_launcher_that_is_killed(tmp_path):
    parent = started_parent("signal.signal(signal.SIGTERM, signal.SIG_IGN)", tmp_path)
    assert len(alive(tmp_path)) == 2
    parent.kill()
    parent.communicate()
    until = time.monotonic() + 5
    while alive(tmp_path) and time.monotonic() < until:
        time.sleep(0.05)
    assert alive(tmp_path) == []


def test_gpus_are_refused_under_another_launcher(monkeypatch):
    for name, value in {
        "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"--gpus 2: a launcher .* has started this process"):
        launched(2)
    assert not launched(None)


def test_one_gpu_needs_no_other_process():
    assert not launched(1)
