"""The errors that users meet. Each message says what is wrong, where, and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

__all__ = [
    "CancelledError",
    "CheckpointError",
    "DataError",
    "Problem",
    "RecipeError",
    "RunError",
    "StoppedError",
    "TotoError",
    "UndecodableError",
    "UserError",
    "error_of_code",
    "raised_by_all",
]

E = TypeVar("E", bound="TotoError")


class TotoError(Exception):
    """Something that toto itself reports; printed without a traceback, exit code 1.

    Attributes:
        exit_code: of the process.
        label: what is printed before the message.
        by_all: whether all ranks of a run raise it alike, so that the first alone prints it.
    """

    exit_code = 1
    label = "error"
    by_all = False


class RunError(TotoError):
    """A run that had to stop through no fault of its recipe: disk full, non-finite loss."""


class UserError(TotoError):
    """A mistake that the user can mend; exit code 2."""

    exit_code = 2


class DataError(UserError):
    """A dataset, shard or file that is missing, broken or does not fit the recipe."""


class UndecodableError(DataError):
    """One sample that is damaged, above a limit, or not of the format that its name says.

    A training stream counts it, names it and draws another in its place; all else that is wrong
    with a dataset is a DataError, and stops the run.
    """


class CheckpointError(UserError):
    """A checkpoint that is missing, incomplete or of another model or tokenizer."""


class StoppedError(TotoError):
    """A scheduler wants the machine back, and the run is saved; exit code 85: queue me again.

    No shell, signal or sysexits.h has that code.
    """

    exit_code = 85
    label = "stopped"


class CancelledError(TotoError):
    """The user's Ctrl-C stopped a run, and the run is saved; exit code 130, as of any Ctrl-C.

    A shell's `toto train ... && toto probe` then does not probe half a run.
    """

    exit_code = 130
    label = "stopped"


def error_of_code(exit_code: int, text: str) -> TotoError:
    """The error that another process ended with, told by its exit code."""
    kinds: dict[int, type[TotoError]] = {
        kind.exit_code: kind for kind in (RunError, UserError, StoppedError, CancelledError)
    }
    return kinds[exit_code](text)


def raised_by_all(error: E) -> E:
    """Mark an error that every rank raises alike."""
    error.by_all = True
    return error


@dataclass(frozen=True)
class Problem:
    """One mistake in a recipe: the dotted path of the value, what is wrong, and the mend."""

    path: str
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}. {self.mend}"


class RecipeError(UserError):
    """Every mistake of one recipe, reported together."""

    def __init__(self, recipe: str, problems: list[Problem]) -> None:
        self.recipe = recipe
        self.problems = problems
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        lines = [f"{recipe}: {count}", *(f"  {problem}" for problem in problems)]
        super().__init__("\n".join(lines))
