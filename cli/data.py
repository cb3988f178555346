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
        Path,
        typer.Argument(
            metavar="SRC", help="a folder of pictures, of videos or of WebDataset tars; or one tar"
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the dataset's folder, made here")],
    layout: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="LAYOUT",
            help="how SRC is laid out: folder, imagenet1k, imagenet21k, kinetics400, kinetics600, "
            "kinetics700, ego4d, howto100m",
        ),
    ] = "folder",
    split: Annotated[
        str | None, typer.Option(help="the part to pack: train, val, test; full_scale of ego4d")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="processes that check files; by default one a core")
    ] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="leave out files that cannot be decoded")
    ] = False,
) -> None:
    """Pack a folder into tar shards with an index; folders by class give labels.

    Stopped, it goes on from the shards that are finished when it is run again.
    """
    from toto.jobs.pack import pack_source

    pack_source(source, out, layout=layout, split=split, workers=workers, skip_broken=skip_broken)


def tokenize(
    dataset: Annotated[Path, typer.Argument(metavar="SHARDS", help="a packed dataset")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the token shards' folder, made here")],
    recipe: Annotated[
        str, typer.Option(help="the recipe whose tokenizer and resolution are taken")
    ],
    crops: Annotated[
        int, typer.Option(min=1, help="crops of each picture: the centre, then random ones")
    ] = 1,
    overrides: SetOption = None,
) -> None:
    """Tokenize a dataset once, so that runs read codes instead of pictures.

    Under torchrun the ranks share the work. Stopped, it goes on from the shards that are finished.
    """
    from toto.jobs.tokenize import tokenize_shards

    tokenize_shards(dataset, out, recipe_name=recipe, overrides=overrides or [], crops=crops)
