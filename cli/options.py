"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
]
RunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]",
        help="a run directory or checkpoint; without it the newest complete next-token "
        "checkpoint under ./runs",
    ),
]
AnyRunsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN]...",
        help="a run directory or checkpoint, of a model or a tokenizer; without it the newest "
        "complete checkpoint under ./runs; several run directories are compared",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="replace a value of the recipe; repeatable"),
]
ImportOption = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE|FILE.py",
        help="import your plug-ins first; a checkpoint never imports code by itself",
    ),
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="NAME",
        help="what tables and figures call each, in the order given; repeatable",
    ),
]
GpusOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="train on N GPUs of this machine, or in N processes where it has none; over several "
        "machines: docs/cluster.md",
    ),
]
OutputOption = Annotated[
    str | None, typer.Option("--output", help="the run directory, instead of the recipe's")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="resume from the newest checkpoint, exactly")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="replace an earlier result in the same folder")
]
