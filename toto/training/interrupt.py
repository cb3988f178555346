"""Signals that ask a run to end: Ctrl-C of the user, SIGTERM and SIGUSR1 of a scheduler."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from toto.errors import CancelledError, RunError, StoppedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType

__all__ = [
    "WARNINGS",
    "Interrupt",
    "hangup_ignored",
    "stopped_before_training",
    "stopped_error",
]

WARNINGS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before they take the machine back; SLURM's --signal chooses SIGUSR1."""

# A scheduler signals launchers and ranks alike, and launchers pass it on: the same wish, twice.
ECHO_SECONDS = 1.0
_HEARD = b"\nstopping when this step is finished and saved; the same signal again ends it at once\n"


class Interrupt:
    """While entered, the first of the signals is only noted, for the loop to honour between steps.

    One that comes later acts as it would without this; its echo, within a second, does nothing.
    Python delivers signals to the main thread; in any other nothing is installed.

    Args:
        aloud: tell the user what the signal does; one rank of a run is enough.

    Attributes:
        heard: the first signal; None as long as there is none.
    """

    def __init__(self, *, aloud: bool = True) -> None:
        self.heard: signal.Signals | None = None
        self._at = 0.0
        self._aloud = aloud
        self._owner = os.getpid()
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *WARNINGS):
                self._previous[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return  # a forked loader process hears the terminal's Ctrl-C too; the run ends it
        if self.heard is None:
            self.heard = signal.Signals(number)
            self._at = time.monotonic()
            if self._aloud:
                os.write(2, _HEARD)  # print is not safe inside a handler
        elif time.monotonic() - self._at >= ECHO_SECONDS:
            for warning in WARNINGS:
                signal.signal(warning, signal.SIG_DFL)
            signal.signal(signal.SIGINT, self._previous[signal.SIGINT])
            signal.raise_signal(number)


def stopped_error(number: signal.Signals) -> StoppedError | CancelledError:
    """Return what a signal ends a saved run with; the exit code says what is wanted next."""
    if number == signal.SIGINT:
        return CancelledError(
            "Ctrl-C came, and nothing is lost. Exit code 130 tells a shell that the run is not done"
        )
    return StoppedError(
        f"{number.name} came, and nothing is lost. Exit code {StoppedError.exit_code} asks the "
        "scheduler for the same command again, with --resume"
    )


@contextmanager
def stopped_before_training() -> Iterator[None]:
    """Let a scheduler's signal end a run at once outside of the steps: there is nothing to save.

    One that comes while a run ends with a RunError does nothing: launchers send it to the ranks
    that are left, and that error is what the user is to hear of. The end of the terminal (SIGHUP)
    does not end the run at all, here or within the steps.

    Raises:
        StoppedError: such a signal has come.
    """
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        ending = isinstance(sys.exc_info()[1], RunError)
        if os.getpid() == owner and not ending:
            raise stopped_error(signal.Signals(number))

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, stop) for number in WARNINGS}
    try:
        with hangup_ignored():
            yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def hangup_ignored() -> Iterator[None]:
    """Let a terminal or an ssh connection that ends take its output with it, and nothing else."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, previous)
