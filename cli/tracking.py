"""The command that tracks objects, and scores masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from toto.cli.options import ImportOption, OverwriteOption

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Put the command into the application."""
    app.command()(track)


def track(
    context: typer.Context,
    davis: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="DAVIS 2017: the folder of JPEGImages, Annotations and ImageSets"
        ),
    ],
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="a run directory or checkpoint")
    ] = None,
    layers: Annotated[
        str, typer.Option(help="all, or a list such as 0,3,6; negatives count from the end")
    ] = "all",
    resolution: Annotated[
        int,
        typer.Option(min=1, help="side in pixels of the square that each frame is squeezed to"),
    ] = 256,
    rope_base: Annotated[
        float | None, typer.Option(min=1.0, help="RoPE's base, instead of the trained one")
    ] = None,
    preset: Annotated[
        Literal["crw", "dino"], typer.Option(help="whose label propagation: docs/tracking.md")
    ] = "crw",
    start: Annotated[
        Literal["image", "video"],
        typer.Option(help="what each frame's sequence begins with"),
    ] = "image",
    sequences: Annotated[
        list[str] | None,
        typer.Option(
            "--sequences",
            metavar="NAME,NAME,...",
            help="these alone, instead of all that val.txt lists; repeatable",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="the folder, instead of one under RUN/eval"),
    ] = None,
    overwrite: OverwriteOption = False,
    score: Annotated[
        Path | None,
        typer.Option(
            metavar="MASKS",
            help="track nothing, and score the masks in this folder: MASKS/SEQUENCE/00000.png",
        ),
    ] = None,
    imports: ImportOption = None,
) -> None:
    """Propagate the first masks of DAVIS by a model's features; J and F of every layer.

    Writes results.jsonl, summary.json, curve.png, and masks and overlays of the best layer to
    RUN/eval/track-DAVIS-PRESET-RESOLUTION-DIGEST.
    """
    from toto.errors import UserError

    names = [name for text in sequences or [] for name in text.split(",")]
    if (run is None) == (score is None):
        raise UserError(
            "toto track takes a RUN, whose features it tracks with, or --score MASKS: one of the "
            "two. `toto runs` lists the runs there are"
        )
    if score is not None:
        _refuse_settings(context)
        from toto.jobs.score_masks import score_folder

        score_folder(score, davis, names)
        return
    from toto.jobs.track import TrackRequest, start_tracking

    request = TrackRequest(
        run=str(run), davis=davis, sequences=tuple(names), layers=layers, resolution=resolution,
        rope_base=rope_base, preset=preset, start=start, out=out, overwrite=overwrite,
        imports=tuple(imports or ()),
    )  # fmt: skip
    start_tracking(request)


def _refuse_settings(context: typer.Context) -> None:
    """Masks that are there depend on nothing of a model: an option about one is a mistake."""
    from toto.errors import UserError

    for name in (
        "layers",
        "resolution",
        "rope_base",
        "preset",
        "start",
        "out",
        "overwrite",
        "imports",
    ):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = "import" if name == "imports" else name.replace("_", "-")
            raise UserError(
                f"--{option} is about tracking, and --score scores masks as they are. Leave out "
                "one of them"
            )
