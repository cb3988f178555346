"""Commands about tokenizers: `toto tokenizer train`, `toto tokenizer convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from toto.cli.options import OutputOption, RecipeArgument, ResumeOption, SetOption

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Put the commands into the application."""
    group = typer.Typer(
        no_args_is_help=True, help="Train a tokenizer of your own, or convert a published one."
    )
    group.command("train")(train)
    group.command("convert")(convert)
    app.add_typer(group, name="tokenizer")


def train(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    output: OutputOption = None,
    resume: ResumeOption = False,
) -> None:
    """Train the tokenizer of a recipe, and report PSNR and codebook use on held-out pictures."""
    from toto.jobs.train_tokenizer import start_tokenizer_training

    start_tokenizer_training(recipe, overrides or [], output=output, resume=resume)


def convert(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            help="encoder.pkl and decoder.pkl of the dVAE, or the checkpoint of a VQGAN",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="NAME.safetensors", help="the file to write")],
) -> None:
    """Turn published weights into one safetensors file, without running what they pickle."""
    from toto.jobs.convert import convert_weights

    convert_weights(files, out)
