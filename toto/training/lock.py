"""One process at a time trains in a run directory. No torch here: `toto runs` asks too.

RUN/run.lock stands while a process trains there and says which; the kernel lets go of it when the
process ends, killed or not.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from toto.errors import UserError
from toto.files import NO_LOCKS, claim, claimant, disk_errors, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["LOCK_FILE", "Holder", "hold_run", "holder_of"]

LOCK_FILE = "run.lock"


@dataclass(frozen=True)
class Holder:
    """Who trains in a directory; `since` is a time in UTC."""

    host: str
    pid: int
    since: str
    command: str

    @classmethod
    def this_process(cls, command: str) -> Holder:
        """The process that asks, from now on."""
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
        return cls(socket.gethostname(), os.getpid(), now, command)


@contextmanager
def hold_run(folder: Path, command: str) -> Iterator[bool]:
    """Keep every other process from training in `folder` until the block or the process ends.

    Args:
        folder: the run directory; it exists.
        command: what the user typed; told to whom is refused.

    Yields:
        Whether the others are kept out: False where the file system knows no locks. RUN/run.lock
        stands there likewise, but a kill leaves it.

    Raises:
        UserError: another process trains there; the message says which.
        RunError: the folder refuses to be written.
    """
    text = json.dumps(asdict(Holder.this_process(command)))
    with ExitStack() as held:
        yield _claimed(held, folder, text)


def holder_of(folder: Path) -> Holder | None:
    """The process that trains in `folder` now, or None."""
    text = claimant(folder / LOCK_FILE)
    return None if text is None else _parsed(text)


def _claimed(held: ExitStack, folder: Path, text: str) -> bool:
    with disk_errors(folder):
        try:
            held.enter_context(claim(folder / LOCK_FILE, text))
        except BlockingIOError:
            raise UserError(_refusal(folder)) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            held.enter_context(_marked(folder / LOCK_FILE, text))
            return False
    return True


@contextmanager
def _marked(path: Path, text: str) -> Iterator[None]:
    write_atomic(path, text)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _parsed(text: str) -> Holder:
    try:
        return Holder(**json.loads(text))
    except ValueError:  # it holds the lock since an instant, and has not written yet
        return Holder("a host without name", 0, "now", "?")


def _refusal(folder: Path) -> str:
    holder = holder_of(folder) or _parsed("")
    return (
        f"{folder} is being trained in: by process {holder.pid} on {holder.host}, since "
        f"{holder.since} UTC (`{holder.command}`). Two would overwrite each other's checkpoints. "
        "Wait for it, or stop it (`kill` saves and ends it) and go on with --resume, or begin "
        "another run with --output"
    )
