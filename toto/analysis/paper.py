"""The paper's tables and figures as data: what it reports, and what of toto gives ours."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, model_validator

from toto.errors import UserError
from toto.recipe.yaml_reader import parse_value
from toto.registry import Config

__all__ = ["Entry", "Measure", "Row", "ablation", "paper"]

FILE = Path(__file__).with_name("paper.yaml")
Measure = Literal["probe", "loss", "parameters", "compute", "track J&F", "track J", "track F"]


class Row(Config):
    """One row of a table.

    Attributes:
        label: as the paper calls it, in words.
        paper: its numbers, one a column; None where it gives none.
        recipe: that gives ours; None of what the paper compares with, or what toto lacks yet.
        small: whether there is a small recipe beside it.
        after: the recipe of the run that this one goes on from.
        run: its name, where a command of the table gives it and no recipe.
        preset: of LLaMA, whose parameters are ours; nothing is trained.
        pool: the pooling of this row's probe, where the table has several.
        results: likewise; see `Entry`.
        resolution: in pixels, of a row that is tracked.
    """

    label: str
    paper: tuple[float | None, ...]
    recipe: str | None = None
    small: bool = True
    after: str | None = None
    run: str | None = None
    preset: str | None = None
    pool: str | None = None
    results: str | None = None
    resolution: int | None = None

    @property
    def is_ours(self) -> bool:
        """Whether toto gives it; else the paper compares with it."""
        return (self.recipe or self.run or self.preset) is not None


class Entry(Config):
    """A table or a figure.

    Attributes:
        name: "Table 3".
        title: what it shows.
        ablation: the word after `toto ablate` that fills it.
        columns: what the numbers are, with unit.
        measures: what gives ours in each column; none where toto does not fill the table.
        pool: the pooling of the paper's probes.
        layer: the one that they read; None for the best.
        results: what was measured on a run: a protocol of `toto probe RUN --recipe NAME`, or
            `classify` or `track`. Small runs are probed without a protocol.
        rows: of the table.
        picture: where a figure of ours is found under the folder of runs, patterns.
        command: that gives it.
        why_not: why toto does not give it.
    """

    name: str
    title: str
    ablation: str | None = None
    columns: tuple[str, ...] = ()
    measures: tuple[Measure, ...] = ()
    pool: str | None = None
    layer: int | None = None
    results: str | None = None
    rows: tuple[Row, ...] = ()
    picture: tuple[str, ...] = ()
    command: str | None = None
    why_not: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Entry:
        if len(self.measures) not in (0, len(self.columns)):
            raise ValueError(f"{self.name}: a measure for each column, or none")
        for row in self.rows:
            if len(row.paper) != len(self.columns):
                raise ValueError(f"{self.name}, {row.label}: a number for each column")
        if sum(x is not None for x in (self.ablation, self.command, self.why_not)) != 1:
            raise ValueError(f"{self.name}: one of ablation, command, why_not")
        return self

    def how(self) -> str | None:
        """The command that gives it."""
        return f"toto ablate {self.ablation}" if self.ablation else self.command


ENTRIES = TypeAdapter(tuple[Entry, ...])


def paper() -> tuple[Entry, ...]:
    """All tables and figures, in the order of the paper."""
    return ENTRIES.validate_python(parse_value(FILE.read_text(encoding="utf-8")))


def ablation(word: str) -> Entry:
    """The table that `toto ablate WORD` fills.

    Raises:
        UserError: there is none; the message names those that are.
    """
    entries = {entry.ablation: entry for entry in paper() if entry.ablation}
    if word not in entries:
        raise UserError(f"no ablation {word!r}. There are {', '.join(map(str, entries))}")
    return entries[word]
