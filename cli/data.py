"""Commands about data: samples, pack, tokenize, doctor, view, stream."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from toto.cli.options import RecipeArgument, SetOption

__all__ = ["add_to"]

DatasetArgument = Annotated[Path, typer.Argument(metavar="DATASET", help="a packed dataset")]
AddressArgument = Annotated[
    str, typer.Argument(metavar="DATASET", help="a packed dataset: a folder, or its address")
]
Kind = Literal["images", "videos"]
FramesOption = Annotated[int, typer.Option(min=1, help="T, the frames of a clip")]
StrideOption = Annotated[int, typer.Option(min=1, help="every stride-th frame")]


def add_to(app: typer.Typer) -> None:
    """Put the commands into the application."""
    for command in (samples, pack, tokenize, doctor, view, stream):
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
            metavar="SRC", help="a folder of images, of videos or of WebDataset tars; or one tar"
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
        str | None,
        typer.Option(help="the sub-folder to pack: train, val, test; full_scale of ego4d"),
    ] = None,
    kind: Annotated[
        Kind | None,
        typer.Option(help="what to pack where images and videos are in one folder or tar"),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET|FILE|none",
            help="take the class list of a packed dataset, so that both splits have the same "
            "labels, or of a text file with one name per line; none: no labels",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="processes that check files; by default one a core")
    ] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="leave out files that cannot be decoded")
    ] = False,
    orientation: Annotated[
        Literal["upright", "stored"],
        typer.Option(help="upright: readers apply EXIF orientation and display matrices"),
    ] = "upright",
) -> None:
    """Pack a folder into tar shards with an index; the first-level folders are the classes.

    If it was stopped, the same command resumes after the shards that are finished.
    """
    from toto.jobs.pack import pack_source

    pack_source(
        source,
        out,
        layout=layout,
        split=split,
        kind=kind,
        class_list=classes,
        workers=workers,
        skip_broken=skip_broken,
        orientation=orientation,
    )


def tokenize(
    dataset: Annotated[
        str, typer.Argument(metavar="SHARDS", help="a packed dataset: a folder, or its address")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the token shards' folder, made here")],
    recipe: Annotated[
        str, typer.Option(help="the recipe whose tokenizer and resolution are taken")
    ],
    crops: Annotated[
        int, typer.Option(min=1, help="crops of each image: the centre, then random ones")
    ] = 1,
    overrides: SetOption = None,
) -> None:
    """Tokenize a dataset once, so that runs read codes instead of pixels.

    Under torchrun the ranks share the work. If it was stopped, the same command resumes after
    the shards that are finished.
    """
    from toto.jobs.tokenize import tokenize_shards

    tokenize_shards(dataset, out, recipe_name=recipe, overrides=overrides or [], crops=crops)


def doctor(
    dataset: DatasetArgument,
    frames: FramesOption = 16,
    stride: StrideOption = 4,
    like: Annotated[
        str | None,
        typer.Option(help="compare with a row of the paper's Table 2, such as kinetics600"),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="let streams leave out what was found")
    ] = False,
    listing: Annotated[
        Path | None,
        typer.Option("--list", help="the findings as JSON lines; else DATASET/doctor.jsonl"),
    ] = None,
) -> None:
    """Examine a dataset: missing, undecodable, too short, duplicate, unlabelled.

    Exit code 1 where something is wrong.
    """
    from toto.jobs.doctor import examine_dataset

    listing = listing or dataset / "doctor.jsonl"
    if not examine_dataset(
        dataset, frames=frames, stride=stride, like=like, fix=fix, listing=listing
    ):
        raise typer.Exit(1)


def stream(
    recipe: RecipeArgument,
    first_step: Annotated[int, typer.Option("--from", min=0, help="the first step")] = 0,
    steps: Annotated[int, typer.Option(min=1)] = 1,
    world: Annotated[int, typer.Option(min=1, help="number of ranks")] = 1,
    overrides: SetOption = None,
) -> None:
    """Print which samples and crops the steps of a recipe use, at any number of ranks."""
    from toto.jobs.stream import print_stream

    print_stream(recipe, overrides or [], first_step=first_step, steps=steps, world=world)


def view(
    dataset: AddressArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT.html")],
    frames: FramesOption = 16,
    stride: StrideOption = 4,
    resolution: Annotated[int, typer.Option(min=1, help="side of the crop in pixels")] = 128,
    samples: Annotated[int, typer.Option(min=1, help="how many, spread over the dataset")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="of the crops and of where clips begin")] = 0,
) -> None:
    """Write a page of samples as a model will see them, after crop and stride."""
    from toto.jobs.view import view_dataset

    view_dataset(
        dataset,
        out,
        frames=frames,
        stride=stride,
        resolution=resolution,
        samples=samples,
        seed=seed,
    )
