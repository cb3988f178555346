"""`toto report --paper`: the paper, table by table, with what was reproduced of it here."""

from __future__ import annotations

from pathlib import Path

from toto.analysis.paper import paper
from toto.analysis.paper_report import gather, write_paper_page
from toto.jobs.console import say
from toto.jobs.runs import RUNS

__all__ = ["report_paper"]

PAGE = Path("paper.html")


def report_paper(out: Path | None) -> None:
    """Write the page of the runs under ./runs.

    Args:
        out: the page; runs/paper.html unless given.

    Raises:
        DataError: a record of a run that cannot be read.
        RunError: the disk is full or refuses.
    """
    page = out or RUNS / PAGE
    entries = [gather(entry, RUNS) for entry in paper()]
    page.parent.mkdir(parents=True, exist_ok=True)
    write_paper_page(page, entries, RUNS)
    states = [entry.state for entry in entries]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    say(f"{page}: {len(entries)} tables and figures: {'; '.join(counts)}")
