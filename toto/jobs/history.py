"""RUN/history.jsonl: every start of a run and how it ended. No torch here: `toto runs` reads it.

A start without an end, where nobody trains any more, was killed.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter

from toto.analysis.records import json_lines, parse
from toto.errors import DataError, RunError
from toto.files import disk_errors, write_atomic
from toto.jobs.commits import Commit  # noqa: TC001  # pydantic reads the annotation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "HISTORY_FILE",
    "Asked",
    "End",
    "Start",
    "append",
    "ended_well",
    "first_start",
    "last_start",
    "note_end",
    "note_failure",
    "now",
    "read_history",
]

HISTORY_FILE = "history.jsonl"


@dataclass(frozen=True)
class Asked:
    """What the user named: a recipe or a run, and what shall replace values, both as typed."""

    recipe: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Origin:
    """Where a run comes from: what the user typed, and the checkpoint of its parent run."""

    asked: Asked | None = None
    init_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class Start:
    """A process began to train.

    Attributes:
        time: in UTC.
        command: the whole command line, without --resume.
        asked: None where a program called.
        folder: the working directory, which relative paths of the command begin at.
        resumed_from: the checkpoint of this run that it goes on from; None at its beginning.
        init_from: the checkpoint of the parent run, or hf:FOLDER; None without one.
        name: of the recipe.
        steps: optimizer steps that the run shall have.
        versions: of toto, torch, Python and deepspeed, if that is there; the machine.
        commits: of toto's code and of the working directory; None where it is no checkout.
        peak: FLOP/s that utilisation is a share of, and where the figure is from; None: unknown.
    """

    time: str
    command: str
    asked: Asked | None
    host: str
    pid: int
    folder: str
    resumed_from: str | None
    init_from: str | None
    name: str
    steps: int
    versions: dict[str, str | int]
    commits: dict[Literal["toto", "folder"], Commit | None]
    peak: dict[str, float | str] | None


@dataclass(frozen=True, kw_only=True)
class End:
    """A process ended in order.

    Attributes:
        time: in UTC.
        state: `done` all steps, `stopped` by a signal, `failed` with an error.
        step: optimizer steps done; None where an error ended it.
        error: its text.
    """

    time: str
    state: Literal["done", "stopped", "failed"]
    step: int | None
    error: str | None = None


START = TypeAdapter(Start)
END = TypeAdapter(End)


def now() -> str:
    """The time in UTC, to the second."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"


def append(run: Path, entry: Start | End) -> None:
    """Add an entry to the history of a run; a line that a kill tore is dropped.

    Raises:
        RunError: the disk is full or refuses.
    """
    path = run / HISTORY_FILE
    kind = "start" if isinstance(entry, Start) else "end"
    line = json.dumps({"kind": kind} | asdict(entry)) + "\n"
    with disk_errors(path):
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        write_atomic(path, before[: before.rfind("\n") + 1] + line)


def read_history(run: Path) -> list[Start | End]:
    """The entries, oldest first; none of a run from before there was a history.

    Raises:
        DataError: a line that is not as toto writes it, with file and line.
    """
    entries: list[Start | End] = []
    for where, value in json_lines(run / HISTORY_FILE):
        kind = value.pop("kind", None)
        if kind not in ("start", "end"):
            raise DataError(f"{where}: kind is {kind!r}, not 'start' or 'end'")
        entries.append(parse(START, value, where) if kind == "start" else parse(END, value, where))
    return entries


def last_start(run: Path) -> Start | None:
    """The newest start of a run; None of a run from before there was a history.

    Raises:
        DataError: see `read_history`.
    """
    starts = [entry for entry in read_history(run) if isinstance(entry, Start)]
    return starts[-1] if starts else None


def first_start(run: Path) -> Start | None:
    """The start that the run began with, not the ones that went on; None if none is recorded.

    Raises:
        DataError: see `read_history`.
    """
    starts = [entry for entry in read_history(run) if isinstance(entry, Start)]
    begun = [entry for entry in starts if entry.resumed_from is None]
    return begun[-1] if begun else None


def ended_well(run: Path) -> bool:
    """Return whether the newest start of a run has an end, with all that follows the last step.

    Raises:
        DataError: see `read_history`.
    """
    entries = read_history(run)
    return bool(entries) and isinstance(entries[-1], End) and entries[-1].state == "done"


def note_end(run: Path, *, step: int, interrupted: bool) -> None:
    """Write down that a process ended in order.

    Raises:
        RunError: the disk is full or refuses.
    """
    append(run, End(time=now(), state="stopped" if interrupted else "done", step=step))


@contextmanager
def note_failure(run: Path) -> Iterator[None]:
    """Write down what ends the block, if an error or a Ctrl-C does."""
    try:
        yield
    except BaseException as error:
        state: Literal["stopped", "failed"] = "failed"
        if isinstance(error, KeyboardInterrupt):
            state = "stopped"
        text = f"{type(error).__name__}: {error}"
        try:
            append(run, End(time=now(), state=state, step=None, error=text))
        except RunError as unwritten:  # a full disk may be what ended it
            error.add_note(str(unwritten))
        raise
