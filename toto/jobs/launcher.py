"""`--gpus N`: N ranks of the same command on this machine, as one command to the user.

This process starts them, passes signals on, waits, and ends as they do. Each rank is a process of
its own with torchrun's variables (see toto/training/launch.py), and with one that names a folder
where it leaves the error that ends it, so that N ranks with one mistake print it once. No torch.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from toto.errors import (
    CancelledError,
    RecipeError,
    RunError,
    StoppedError,
    TotoError,
    UserError,
    error_of_code,
)
from toto.processes import end_with_parent, exit_text
from toto.terminal import make_console, print_lines
from toto.training.interrupt import WARNINGS, hangup_ignored, stopped_error
from toto.training.launch import ALONE, find_launch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType

__all__ = ["launched", "run_ranks", "tell"]

# PID:FOLDER, of the process that launched this one and of what its ranks leave there.
LAUNCHER = "TOTO_LAUNCHER"

# Exit codes of a rank that a signal stopped and that has saved: the others do so too.
SAVED = {StoppedError.exit_code, CancelledError.exit_code}
FORWARDED = (signal.SIGINT, *WARNINGS)
POLL_SECONDS = 0.1
# After one rank has failed the others are left to find out, then told, then killed.
NOTICE_SECONDS = 6.0
SAVE_SECONDS = 8.0  # with the notice less than 15 s, after which a hanging run helps no one


def launched(gpus: int | None) -> bool:
    """Run this very command on so many ranks, if that is asked for and this is not one of them.

    Returns:
        Whether it has been run; False: this process is to run it.

    Raises:
        UserError: another launcher has started this process; or the ranks' mistake.
        RunError: a rank was killed or crashed; or what the ranks raised.
        StoppedError: a scheduler's signal stopped them.
        CancelledError: Ctrl-C did, and they have saved.
        KeyboardInterrupt: Ctrl-C did, and they did not finish in order.
    """
    if LAUNCHER in os.environ:
        end_with_parent(int(os.environ[LAUNCHER].partition(":")[0]))
        return False
    if gpus is None:
        return False
    if find_launch(os.environ) != ALONE:
        raise UserError(
            f"--gpus {gpus}: a launcher (torchrun, deepspeed or srun) has started this process as "
            "one of its ranks already. Leave --gpus out, or start the command without it"
        )
    if gpus == 1:
        return False
    with TemporaryDirectory(prefix="toto-ranks-") as folder:
        command = [sys.executable, "-P", "-m", "toto.cli", *sys.argv[1:]]
        run_ranks(command, gpus, Path(folder))
    return True


def tell(error: TotoError) -> None:
    """Print an error that ends this process; or leave it to the launcher, or to the first rank."""
    notes = [str(note) for note in getattr(error, "__notes__", ())]
    if LAUNCHER in os.environ:
        word = {"exit_code": error.exit_code, "text": str(error), "notes": notes}
        folder = Path(os.environ[LAUNCHER].partition(":")[2])
        # The time is first: the earliest is the cause of the others.
        name = f"{time.monotonic_ns():020}-rank-{os.environ['RANK']}"
        (folder / f"{name}.partial").write_text(json.dumps(word), encoding="utf-8")
        (folder / f"{name}.partial").rename(folder / f"{name}.json")
        return
    if _another_tells(error):
        return
    console = make_console(stderr=True)
    print_lines(console, str(error), label=error.label)
    for note in notes:
        print_lines(console, note, label="besides")


def _another_tells(error: TotoError) -> bool:
    try:
        launch = find_launch(os.environ)
    except UserError:  # of the launcher's variables: no rank knows which it is
        return False
    # The ranks of a machine read one recipe, and before they have met each finds its mistakes.
    if isinstance(error, RecipeError):
        return launch.local_rank > 0
    return error.by_all and launch.rank > 0


def run_ranks(command: Sequence[str], world: int, folder: Path) -> None:
    """Run a command of toto on so many ranks, and end when the last of them does.

    Args:
        command: of each rank.
        world: how many.
        folder: empty; they leave their errors there.

    Raises:
        TotoError, KeyboardInterrupt: see `launched`.
    """
    _Ranks(command, world, folder).run()


class _Ranks:
    """The processes of the ranks, from their start to the end of the last; see `run_ranks`."""

    def __init__(self, command: Sequence[str], world: int, folder: Path) -> None:
        self._command = command
        self._folder = folder
        port = _free_port()
        self._environments = [_environment(rank, world, port, folder) for rank in range(world)]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._heard: signal.Signals | None = None

    def run(self) -> None:
        with self._forwarded_signals(), hangup_ignored():
            try:
                for environment in self._environments:
                    # Its own session: a terminal's Ctrl-C comes from here, and once.
                    process = subprocess.Popen(
                        self._command, env=environment, start_new_session=True
                    )
                    self._processes.append(process)
                failed = self._first_failures()
                if failed:
                    self._end_others(next(iter(failed)))
            finally:
                for process in self._processes:
                    process.kill()
                    process.wait()
        if failed:
            raise self._cause(failed)

    @contextmanager
    def _forwarded_signals(self) -> Iterator[None]:
        previous = {number: signal.signal(number, self._forward) for number in FORWARDED}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._heard = signal.Signals(number)
        self._send(self._heard)

    def _send(self, number: signal.Signals) -> None:
        for process in self._processes:
            process.send_signal(number)  # nothing happens where it has ended

    def _alive(self) -> bool:
        return any(process.poll() is None for process in self._processes)

    def _first_failures(self) -> dict[int, int]:
        """Rank → exit code of those that failed first; none when all have ended well."""
        while True:
            alive = self._alive()
            codes = {rank: process.poll() for rank, process in enumerate(self._processes)}
            failed = {rank: code for rank, code in codes.items() if code}
            if not alive or not SAVED.issuperset(failed.values()):
                return failed
            time.sleep(POLL_SECONDS)

    def _end_others(self, first: int) -> None:
        if self._ended_within(NOTICE_SECONDS):
            return
        text = f"rank {first} has ended with an error; the others are told to, by SIGTERM"
        print_lines(make_console(stderr=True), text)
        self._send(signal.SIGTERM)
        self._send(signal.SIGCONT)  # one that is stopped would not hear it
        self._ended_within(SAVE_SECONDS)

    def _ended_within(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self._alive() and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        return not self._alive()

    def _cause(self, failed: Mapping[int, int]) -> BaseException:
        """What to raise for all of them."""
        for rank, code in failed.items():
            if code < 0 and -code != self._heard:
                return RunError(
                    f"rank {rank} was ended by {exit_text(code)}. The other ranks were ended "
                    "too; the checkpoints are whole: resume with --resume"
                )
        words = self._words()
        if words:
            return words[0]
        if self._heard == signal.SIGINT:
            return KeyboardInterrupt()
        rank, code = next(iter(failed.items()))
        if code < 0:
            return stopped_error(signal.Signals(-code))
        return RunError(f"rank {rank} ended with exit code {code}; what it said stands above")

    def _words(self) -> list[TotoError]:
        """The errors that the ranks have left, the earliest first."""
        errors = []
        for path in sorted(self._folder.glob("*.json")):
            word = json.loads(path.read_text(encoding="utf-8"))
            error = error_of_code(word["exit_code"], word["text"])
            for note in word["notes"]:
                error.add_note(note)
            errors.append(error)
        return errors


def _environment(rank: int, world: int, port: int, folder: Path) -> dict[str, str]:
    """The variables of a rank: torchrun's, the launcher's, and its share of the cores."""
    return {
        "OMP_NUM_THREADS": str(max(len(os.sched_getaffinity(0)) // world, 1)),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        LAUNCHER: f"{os.getpid()}:{folder}",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
