"""Commands that look into data and models: `toto analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from toto.cli.options import ImportOption, LabelOption, OverwriteOption

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Put the commands into the application."""
    group = typer.Typer(no_args_is_help=True, help="Statistics and figures.")
    group.command("ngrams")(ngrams)
    group.command("coordinates")(coordinates)
    group.command("token-loss")(token_loss)
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


def coordinates(
    backbone: Annotated[
        str,
        typer.Argument(metavar="BACKBONE", help="as in a recipe: '{name: llama, preset: tiny}'"),
    ],
    out: Annotated[Path, typer.Option(metavar="OUT", help="the folder of the results")],
    widths: Annotated[
        str, typer.Option(help="the smallest is the base width of µP")
    ] = "64,128,256,512",
    lr: Annotated[float, typer.Option(min=0.0, help="learning rate, constant")] = 0.01,
    steps: Annotated[int, typer.Option(min=1, help="optimizer steps")] = 4,
    imports: ImportOption = None,
) -> None:
    """Check µP: do activations keep their size when a backbone grows wider?

    Writes OUT/coordinates.json and OUT/coordinates.png, with µP and without.
    """
    from toto.errors import UserError
    from toto.jobs.coordinates import analyze_coordinates

    try:
        numbers = [int(width) for width in widths.split(",")]
    except ValueError:
        raise UserError(f"--widths {widths}: write numbers with commas, 64,128,256") from None
    analyze_coordinates(backbone, out, widths=numbers, lr=lr, steps=steps, imports=imports or [])


def token_loss(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run directory or checkpoint")],
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="a packed dataset, or tokens of the run's tokenizer"),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT", help="the folder of the results, instead of one under RUN/eval"
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    sequences: Annotated[
        int | None, typer.Option(min=1, help="spread over the data; all unless given")
    ] = None,
    imports: ImportOption = None,
) -> None:
    """Measure the loss at each position of a sequence and in each frame (Figure 10).

    Writes token_loss.json, token_loss.csv (every position) and token_loss.png to
    RUN/eval/token_loss-DATA-DIGEST, with what copying the last frame and the unigram lose.
    """
    from toto.jobs.token_loss import analyze_token_loss

    analyze_token_loss(
        run, data, out=out, sequences=sequences, overwrite=overwrite, imports=imports or []
    )
