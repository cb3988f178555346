"""Commands about tokenizers: `toto tokenizer train`, `eval` and `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from toto.cli.options import (
    GpusOption,
    ImportOption,
    LabelOption,
    OutputOption,
    RecipeArgument,
    ResumeOption,
    SetOption,
)

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Put the commands into the application."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Train a tokenizer of your own, judge any, or convert a published one.",
    )
    group.command("train")(train)
    group.command("eval")(eval_)
    group.command("convert")(convert)
    app.add_typer(group, name="tokenizer")


def train(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    output: OutputOption = None,
    resume: ResumeOption = False,
    gpus: GpusOption = None,
) -> None:
    """Train the tokenizer of a recipe, and report PSNR and codebook use on validation images."""
    from toto.jobs.launcher import launched

    if launched(gpus):
        return
    from toto.jobs.train_tokenizer import start_tokenizer_training

    start_tokenizer_training(recipe, overrides or [], output=output, resume=resume)


def convert(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            help="encoder.pkl and decoder.pkl of the dVAE, the checkpoint of a VQGAN, or the "
            "state_dict of either (torch.save or safetensors)",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="NAME.safetensors", help="the file to write")],
) -> None:
    """Turn published weights into one safetensors file, without running what they pickle."""
    from toto.jobs.convert import convert_weights

    convert_weights(files, out)


def eval_(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="packed validation images or videos")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the results' folder, made here")],
    tokenizers: Annotated[
        list[str],
        typer.Option(
            "--tokenizer",
            metavar="T",
            help="a recipe, a .safetensors file of toto, toto:NAME, official:NAME or a run of "
            "`toto tokenizer train`; repeatable",
        ),
    ],
    resolution: Annotated[
        int | None,
        typer.Option(min=1, help="side of the crops in pixels, for all; else that of each recipe"),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="images or frames, spread over the dataset")
    ] = 1000,
    labels: LabelOption = None,
    imports: ImportOption = None,
) -> None:
    """Measure reconstructions and codebook use on the same images, tokenizers side by side.

    Writes OUT/evaluation.json (PSNR, SSIM, codes used, perplexity) and OUT/reconstructions.png.
    """
    from toto.jobs.evaluate_tokenizers import evaluate_tokenizers

    evaluate_tokenizers(
        dataset,
        out,
        tokenizers,
        resolution=resolution,
        samples=samples,
        labels=labels or [],
        imports=imports or [],
    )
