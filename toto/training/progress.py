"""What a run shows while it trains: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from toto.terminal import make_console, print_lines

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from toto.training.distributed import Ranks
    from toto.training.metrics import EvalLine, TrainLine

__all__ = ["BarDisplay", "Display", "LineDisplay", "SilentDisplay", "make_display"]


class Display(AbstractContextManager["Display"], Protocol):
    """What the loop tells the user."""

    def begin(self, step: int, steps: int) -> None:
        """Training begins after `step` of `steps`."""

    def step(self, step: int) -> None:
        """That many optimizer steps are done."""

    def train(self, line: TrainLine) -> None:
        """A step that is recorded."""

    def evaluation(self, line: EvalLine) -> None:
        """An evaluation that is recorded."""

    def say(self, text: str) -> None:
        """A sentence."""


def make_display(ranks: Ranks, console: Console | None = None) -> Display:
    """A bar where the output is a terminal, else lines; only the first rank says anything."""
    if not ranks.is_first:
        return SilentDisplay()
    console = console or make_console()
    return BarDisplay(console) if console.is_terminal else LineDisplay(console)


class SilentDisplay(Display):
    """Of the ranks that say nothing."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return

    def begin(self, step: int, steps: int) -> None:
        """Nothing."""

    def step(self, step: int) -> None:
        """Nothing."""

    def train(self, line: TrainLine) -> None:
        """Nothing."""

    def evaluation(self, line: EvalLine) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


class LineDisplay(Display):
    """One line for each recorded step and evaluation."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._steps = self._first = 0
        self._begun = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return

    def begin(self, step: int, steps: int) -> None:
        """See `Display.begin`."""
        self._first, self._steps, self._begun = step, steps, time.perf_counter()

    def step(self, step: int) -> None:
        """Nothing: only recorded steps get a line."""

    def train(self, line: TrainLine) -> None:
        """See `Display.train`."""
        per_step = (time.perf_counter() - self._begun) / (line.step - self._first)
        left = _clock(per_step * (self._steps - line.step))
        self.say(f"step {line.step}/{self._steps}  {_figures(line)}  {left} left")

    def evaluation(self, line: EvalLine) -> None:
        """See `Display.evaluation`."""
        for text in _evaluation_lines(line):
            self.say(text)

    def say(self, text: str) -> None:
        """See `Display.say`."""
        print_lines(self._console, text)


class BarDisplay(Display):
    """A rich bar with loss, tokens a second and time left; evaluations scroll above it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
        )
        self._bar = TaskID(0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def begin(self, step: int, steps: int) -> None:
        """See `Display.begin`."""
        self._bar = self._progress.add_task("train", total=steps, completed=step, figures="")

    def step(self, step: int) -> None:
        """See `Display.step`."""
        self._progress.update(self._bar, completed=step)

    def train(self, line: TrainLine) -> None:
        """See `Display.train`."""
        self._progress.update(self._bar, figures=_figures(line))

    def evaluation(self, line: EvalLine) -> None:
        """See `Display.evaluation`."""
        for text in _evaluation_lines(line):
            self.say(text)

    def say(self, text: str) -> None:
        """See `Display.say`."""
        print_lines(self._progress.console, text)


def _figures(line: TrainLine) -> str:
    return f"loss {line.loss:.4f}  {line.tokens_per_s:,.0f} tokens/s"


def _evaluation_lines(line: EvalLine) -> list[str]:
    """One line a source: its loss, and the other scalars in brackets."""
    texts = []
    for source, values in line.sources.items():
        scalars = {name: value for name, value in values.items() if not isinstance(value, list)}
        others = ", ".join(f"{name} {v:.4f}" for name, v in scalars.items() if name != "loss")
        loss = f"loss {scalars['loss']:.4f}" if "loss" in scalars else ""
        text = f"step {line.step}  validation {source}  {loss}"
        texts.append(f"{text} ({others})" if others else text)
    return texts


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
