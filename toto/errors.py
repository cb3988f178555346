"""The errors that users meet. Each message says what is wrong, where, and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CheckpointError",
    "DataError",
    "Problem",
    "RecipeError",
    "RunError",
    "TotoError",
    "UserError",
]


class TotoError(Exception):
    """Something that toto itself reports; printed without a traceback, exit code 1."""

    exit_code = 1


class RunError(TotoError):
    """A run that had to stop through no fault of its recipe: disk full, non-finite loss."""


class UserError(TotoError):
    """A mistake that the user can mend; exit code 2."""

    exit_code = 2


class DataError(UserError):
    """A dataset, shard or file that is missing, broken or does not fit the recipe."""


class CheckpointError(UserError):
    """A checkpoint that is missing, incomplete or of another model or tokenizer."""


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
