"""What jobs say: lines on standard output, and a bar for long work, plain where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.progress import BarColumn, Progress, TextColumn

from toto.terminal import make_console, one_line, print_lines

__all__ = ["ProgressFn", "console", "progress_bar", "say", "say_table"]

ProgressFn = Callable[[int, int], None]
"""`progress(done, total)`: called after each piece of long work."""

console = make_console()
PLAIN_EVERY_SECONDS = 10.0
AT_ONCE_SECONDS = 0.2


def say(text: str) -> None:
    """Print a line to standard output; control characters in it are shown, not sent."""
    print_lines(console, text)


def say_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, num_words: int = 1) -> None:
    """Print rows of cells below their heads: columns of words, then columns of numbers."""
    head, rows = _cells(head), [_cells(row) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if place < num_words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())


def _cells(row: Sequence[str]) -> list[str]:
    return [one_line(cell) for cell in row]


@contextmanager
def progress_bar(label: str, unit: str = "") -> Iterator[ProgressFn]:
    """A bar with rate and time left on a terminal; elsewhere a line every ten seconds, and a last.

    Args:
        label: what is done.
        unit: of the numbers that the progress is called with, such as files; bytes become MB.
    """
    pace = _Pace(unit)
    if console.is_terminal:
        what, how_fast = "{task.description}", "{task.fields[pace]}"
        columns = (TextColumn(what, markup=False), BarColumn(), TextColumn(how_fast, markup=False))
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(one_line(label), total=None, pace="")
            yield lambda done, total: bar.update(
                task, completed=done, total=total, pace=pace.text(done, total)
            )
        return
    last = [time.monotonic()]

    def plain(done: int, total: int) -> None:
        now = time.monotonic()
        text = pace.text(done, total)
        if done == total or now - last[0] >= PLAIN_EVERY_SECONDS:
            last[0] = now
            say(f"{label}: {text}")

    yield plain


class _Pace:
    """How much is done, how fast, and how long the rest takes at the mean speed so far."""

    def __init__(self, unit: str) -> None:
        self._scale = 1e-6 if unit == "bytes" else 1
        self._unit = "MB" if unit == "bytes" else unit
        self._start = time.monotonic()
        self._before: int | None = None

    def text(self, done: int, total: int) -> str:
        """`1,200 of 5,000 files, 2,050/s, 0:00:02 left`."""
        seconds = time.monotonic() - self._start
        if self._before is None:
            # What comes at once was done by an earlier process, and tells nothing of the speed.
            self._before = done if seconds < AT_ONCE_SECONDS and done > 1 else 0
        shown = f"{done * self._scale:,.0f} of {total * self._scale:,.0f} {self._unit}".rstrip()
        rate = (done - self._before) / max(seconds, 1e-9)
        if rate <= 0 or seconds < AT_ONCE_SECONDS:
            return shown
        left = timedelta(seconds=round((total - done) / rate))
        return f"{shown}, {rate * self._scale:,.{0 if rate * self._scale >= 10 else 1}f}/s" + (
            f", {left} left" if done < total else ""
        )
