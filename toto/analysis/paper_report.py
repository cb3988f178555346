"""One page: every table and figure of the paper, and what this installation has of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from toto.analysis.page import embedded, write_page
from toto.analysis.reproduced import SMALL_NOTE, filled, table_cells

if TYPE_CHECKING:
    from pathlib import Path

    from toto.analysis.paper import Entry, Measure
    from toto.analysis.reproduced import Filled

__all__ = ["PaperEntry", "gather", "write_paper_page"]

State = Literal[
    "reproduced", "in part", "ours, at another scale", "counted, not trained", "not run",
    "not in toto",
]  # fmt: skip
COUNTED: set[Measure] = {"parameters", "compute"}
MAX_PICTURES = 3
LEAD = (
    'An Empirical Study of Autoregressive Pre-training from Videos (arXiv 2501.05453). "Ours" '
    "are the numbers of the runs under {runs}; where there is no run, the page shows the command "
    "for it. The gap is ours minus the paper's. Reproduced: every number of ours is from a run of "
    "the paper's recipe. Counted, not trained: parameters and arithmetic of the architecture, "
    "which need no run. Ours, at another scale: tables of small runs, and figures of any runs; "
    "they cannot be compared with the paper's numbers."
)


@dataclass(frozen=True)
class Table:
    """Head and cells, and a remark above them."""

    head: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture of ours, as a data URI."""

    path: str
    uri: str


@dataclass(frozen=True)
class PaperEntry:
    """A table or figure as the page shows it; `command` gives it, or `why_not` says why none."""

    name: str
    title: str
    state: State
    tables: list[Table]
    pictures: list[Picture]
    command: str | None
    why_not: str | None


def write_paper_page(out: Path, entries: list[PaperEntry], runs: Path) -> None:
    """Write the page; an older one is replaced by a complete one.

    Raises:
        RunError: the disk is full or refuses.
    """
    write_page(
        out,
        "paper_report.html",
        {
            "content": {"name": "The paper and ours", "facts": {}},
            "lead": LEAD.format(runs=f"{runs}/"),
            "summary_head": ["", "here", "what"],
            "summary": [[one.name, one.state, one.title] for one in entries],
            "entries": entries,
        },
    )


def gather(entry: Entry, runs: Path) -> PaperEntry:
    """What the runs in a folder give of a table or a figure.

    Raises:
        DataError: a record of a run that cannot be read.
    """
    rows = filled(entry, runs, small=False)
    tables = [Table(*table_cells(entry, rows, small=False))] if rows else []
    small = filled(entry, runs, small=True) if entry.ablation else []
    if any(one.run for one in small):
        tables.append(Table(*table_cells(entry, small, small=True), note=SMALL_NOTE))
    pictures = _pictures(entry, runs)
    return PaperEntry(
        name=entry.name,
        title=entry.title,
        state=_state(entry, rows, small, pictures),
        tables=tables,
        pictures=pictures,
        command=entry.how(),
        why_not=entry.why_not,
    )


def _state(entry: Entry, rows: list[Filled], small: list[Filled], pictures: list[Picture]) -> State:
    if entry.why_not:
        return "not in toto"
    if entry.measures and set(entry.measures) <= COUNTED:
        return "counted, not trained"
    wanted = [one for one in rows if one.row.is_ours]
    whole = [one for one in wanted if None not in one.ours and not one.departures]
    if wanted and len(whole) == len(wanted):
        return "reproduced"
    if _has_trained(entry, wanted):
        return "in part"
    if _has_trained(entry, small):
        return "ours, at another scale"
    return "ours, at another scale" if pictures else "not run"


def _has_trained(entry: Entry, rows: list[Filled]) -> bool:
    """Return whether a number of ours comes from a run, rather than from the architecture."""
    return any(
        ours is not None
        for one in rows
        for measure, ours in zip(entry.measures, one.ours)  # noqa: B905  none without measures
        if measure not in COUNTED
    )


def _pictures(entry: Entry, runs: Path) -> list[Picture]:
    """The newest ones."""
    found = [path for pattern in entry.picture for path in runs.glob(pattern)]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [Picture(str(path), embedded(path, path.parent)) for path in found[:MAX_PICTURES]]
