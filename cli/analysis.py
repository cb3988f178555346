"""Commands that look into data and models: `toto analyze ngrams`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from toto.cli.options import ImportOption, LabelOption

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Put the commands into the application."""
    group = typer.Typer(no_args_is_help=True, help="Statistics and figures.")
    group.command("ngrams")(ngrams)
    app.add_typer(group, name="analyze")


def ngrams(
    tokens: Annotated[
        list[str], typer.Argument(metavar="TOKENS", help="token datasets of `toto tokenize`")
    ],
    out: Annotated[Path, typer.Option(metavar="OUT", help="the folder of the results")],
    images: Annotated[
        int | None,
        typer.Option(min=1, help="of each dataset, spread over it; all unless given"),
    ] = None,
    labels: LabelOption = None,
    imports: ImportOption = None,
) -> None:
    """Count tokens and runs of two and three of them: how many differ, how even they are.

    Writes OUT/ngrams.json (statistics), OUT/ngrams.csv and OUT/ngrams.png (sorted histograms).
    """
    from toto.jobs.ngrams import analyze_ngrams

    analyze_ngrams(tokens, out, images=images, labels=labels or [], imports=imports or [])
