"""Commands about data: samples, pack, tokenize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from toto.cli.options import SetOption

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Put the commands into the application."""
    for command in (samples, pack, tokenize):
        app.command()(command)


def samples(
    root: Annotated[Path, typer.Argument(metavar="OUT", help="the folder of the six datasets")],
) -> None:
    """Make the sample datasets (photographs, clips, moving digits) from installed packages."""
    from toto.jobs.pack import make_sample_datasets

    make_sample_datasets(root)


def pack(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="a folder of pictures, or one of videos")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the dataset's folder, made here")],
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="leave out files that cannot be decoded")
    ] = False,
) -> None:
    """Pack a folder into tar shards with an index; folders by class give labels."""
    from toto.jobs.pack import pack_source

    pack_source(source, out, skip_broken=skip_broken)


def tokenize(
    dataset: Annotated[
        str, typer.Argument(metavar="SHARDS", help="a packed dataset: a folder, or its address")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the token shards' folder, made here")],
    recipe: Annotated[
        str, typer.Option(help="the recipe whose tokenizer and resolution are taken")
    ],
    overrides: SetOption = None,
) -> None:
    """Tokenize a dataset once, so that runs read codes instead of pictures."""
    from toto.jobs.tokenize import tokenize_shards

    tokenize_shards(dataset, out, recipe_name=recipe, overrides=overrides or [])
