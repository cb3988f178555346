"""`toto`: the commands, and what becomes of errors."""

from __future__ import annotations

import os
import sys

import typer
from toto.cli import analysis, data, inspection, models, tokenizers, tracking, weights

from toto.errors import TotoError

__all__ = ["app", "main"]

app = typer.Typer(
    name="toto",
    help="Autoregressive pre-training on images and video: pack, train, probe, generate, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
models.add_to(app)
tracking.add_to(app)
tokenizers.add_to(app)
weights.add_to(app)
data.add_to(app)
analysis.add_to(app)
inspection.add_to(app)


def main() -> None:
    """Entry point: what toto reports itself is one message without a traceback.

    Exit codes: 0 done (a run that Ctrl-C stopped and saved too), 1 a run that had to stop,
    2 the user's mistake, 85 a run that a scheduler's signal stopped and saved: queue it again.
    """
    # Ranks, data workers and compilers that this process starts are Python processes too. Without
    # this they would import modules from the working directory, which may be a stranger's.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    try:
        app()
    except TotoError as error:
        from toto.jobs.launcher import tell

        tell(error)
        sys.exit(error.exit_code)
