"""What jobs say: lines on standard output, and a bar for long work, plain where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["ProgressFn", "console", "progress_bar", "say"]

ProgressFn = Callable[[int, int], None]
"""`progress(done, total)`: called after each piece of long work."""

console = Console(soft_wrap=True, highlight=False)
PLAIN_EVERY_SECONDS = 10.0


def say(text: str) -> None:
    """Print a line, as it is."""
    console.print(text, markup=False)


@contextmanager
def progress_bar(label: str) -> Iterator[ProgressFn]:
    """A bar with time left on a terminal; elsewhere a line every ten seconds and at the end."""
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    last = [time.monotonic()]

    def plain(done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - last[0] >= PLAIN_EVERY_SECONDS:
            last[0] = now
            say(f"{label}: {done:,} of {total:,}")

    yield plain
