"""Commands about tokenizers: `toto tokenizer train`."""

from __future__ import annotations

import typer
from toto.cli.options import OutputOption, RecipeArgument, ResumeOption, SetOption

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Put the commands into the application."""
    group = typer.Typer(no_args_is_help=True, help="Train a tokenizer of your own.")
    group.command("train")(train)
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
