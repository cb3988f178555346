"""A command killed before any of its file operations, and what the same command makes of the rest.

The command runs in a fork of a process that has imported everything already, and has no threads: a
fork of the test's own process could wait for locks that its threads held. In the fork an audit hook
counts the operations that change files below a folder (PEP 578), and kills the process by SIGKILL
before the one that is asked for.
"""

from __future__ import annotations

import hashlib
import importlib
import mmap
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

from toto.cli.main import main

from toto.data import moving_digits
from toto.tokenizers.official import OFFICIAL

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {
    "os.rename": 2, "os.link": 2, "os.symlink": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1,
    "os.truncate": 1, "os.chmod": 1,
}  # fmt: skip
"""Audit event of an operation → how many of its first arguments are paths."""

PRELOADED = (
    "torch", "av", "matplotlib.pyplot", "toto.jobs.train", "toto.jobs.finetune",
    "toto.jobs.train_tokenizer", "toto.jobs.probe", "toto.jobs.track", "toto.jobs.generate",
    "toto.jobs.features", "toto.jobs.report", "toto.jobs.evaluate_tokenizers",
)  # fmt: skip
VQGAN = {"num_codes": 16, "code_dim": 8, "latent_dim": 8, "width": 32, "blocks_per_level": 1}
VQGAN |= {"width_multipliers": [1, 1, 1, 1], "attention_levels": [3]}
"""The sizes of what `toto weights get vqgan-1024` fetches here."""


class Forks:
    """A clean process whose forks run commands; see `forks`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def run(
        self, words: str, folder: Path, log: Path, *, kill_before: int | None = None
    ) -> tuple[int, int]:
        """Run `toto` with these words; arguments and result are those of `run_in_fork`."""
        self._connection.send((words, folder, log, kill_before))
        return self._connection.recv()


@contextmanager
def forks() -> Iterator[Forks]:
    """Start the process; it ends with the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,))
    process.start()
    try:
        yield Forks(ours)
    finally:
        process.kill()
        process.join()


def _serve(connection: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    for name in PRELOADED:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    # Small enough to be made again and again.
    OFFICIAL["vqgan-1024"] = replace(OFFICIAL["vqgan-1024"], sizes=VQGAN)
    moving_digits.VIDEOS = {"train": 2, "val": 1}
    while True:
        words, folder, log, kill_before = connection.recv()
        os.environ["TOTO_HOME"] = str(folder / "home")
        connection.send(run_in_fork(work_of(words), folder, log, kill_before=kill_before))


def work_of(words: str) -> Callable[[], int]:
    """The command as a function; the digits are made by a function of Python."""
    if words == "moving digits":
        return lambda: moving_digits.make_moving_digits(Path("digits")) or 0
    return command(shlex.split(words))


def command(words: Sequence[str]) -> Callable[[], int]:
    """`toto` with these words, as a function that returns its exit code."""

    def run() -> int:
        with mock.patch.object(sys, "argv", ["toto", *words]):
            try:
                main()
            except SystemExit as stop:
                return int(stop.code or 0)
        return 0

    return run


def run_in_fork(
    work: Callable[[], int], folder: Path, log: Path, *, kill_before: int | None = None
) -> tuple[int, int]:
    """Run `work` with `folder` as the working directory.

    Args:
        work: returns an exit code.
        folder: whose file operations count.
        log: what it prints goes there; outside the folder.
        kill_before: the number of the operation, from 0 on, that is not done any more.

    Returns:
        The exit code (-9: it was killed), and the number of operations.
    """
    counter = mmap.mmap(-1, 8)
    child = os.fork()
    if child == 0:
        _run_and_exit(work, folder, log, counter, kill_before)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int.from_bytes(counter[:8], "little")


def _run_and_exit(
    work: Callable[[], int], folder: Path, log: Path, counter: mmap.mmap, kill_before: int | None
) -> None:
    code = 70
    try:
        with log.open("w", buffering=1) as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.stdout = sys.stderr = output
            os.chdir(folder)
            sys.addaudithook(_counting(folder, counter, kill_before))
            code = work()
            output.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _counting(folder: Path, counter: mmap.mmap, kill_before: int | None):
    def below(path: object) -> bool:
        return isinstance(path, (str, bytes, os.PathLike)) and os.path.abspath(
            os.fsdecode(path)
        ).startswith(f"{folder}{os.sep}")

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            changes = bool(set(mode) & set("wax+")) if mode else bool((flags or 0) & WRITES)
            counts = changes and below(path)
        elif event in CHANGES:
            in_folder_descriptor = any(isinstance(a, int) and a > 2 for a in arguments[1:])
            counts = in_folder_descriptor or any(map(below, arguments[: CHANGES[event]]))
        else:
            return
        if not counts:
            return
        done = int.from_bytes(counter[:8], "little")
        if done == kill_before:
            os.kill(os.getpid(), signal.SIGKILL)
        counter[:8] = (done + 1).to_bytes(8, "little")

    return hook


def snapshot(folder: Path, ignored: re.Pattern[str]) -> dict[str, str]:
    """Every path below the folder → the hash of its content; only the names of those ignored."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = "folder"
        elif ignored.fullmatch(name):
            found[name] = "ignored"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def fresh(world: Path, folder: Path) -> None:
    """Make `folder` a copy of the world: always under the same path, which results may record."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world, folder, symlinks=True)
