"""`toto`: the commands, and what becomes of errors."""

from __future__ import annotations

import os
import sys
import traceback

import typer
from toto.cli import analysis, data, inspection, models, tokenizers, tracking, weights

from toto.errors import TotoError
from toto.terminal import guarded_output, report_unexpected

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
    """Run the command line; what toto reports itself is one message without a traceback.

    Exit codes: 0 done, 1 a run that had to stop or an error that toto does not know, 2 the user's
    mistake, 85 a run that a scheduler's signal stopped and saved, to be queued again, 130 Ctrl-C
    (a training run has saved).
    """
    # Ranks, data workers and compilers that this process starts are Python processes too. Without
    # this they would import modules from the working directory, which may be a stranger's.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    with guarded_output():
        try:
            app()
        except TotoError as error:
            from toto.jobs.launcher import tell

            tell(error)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            sys.exit(130)
        except SystemExit as ended:
            if not _is_of_typer(ended):
                # A plug-in, or a library: whatever code it chose, the command has not been done.
                report_unexpected(ended)
                sys.exit(1)
            hidden = _hidden_by_typer(ended)
            if hidden is not None:
                report_unexpected(hidden)
            raise
        except Exception as error:
            report_unexpected(error)
            sys.exit(1)


def _is_of_typer(ended: SystemExit) -> bool:
    """Return whether typer exits, as it does at the end of every command."""
    frames = [frame for frame, _ in traceback.walk_tb(ended.__traceback__)]
    module: str = frames[-1].f_globals.get("__name__", "")
    return module.partition(".")[0] in ("typer", "click")


def _hidden_by_typer(ended: SystemExit) -> BaseException | None:
    """Return the error that typer turned into a silent exit, if there was one.

    It takes every broken pipe for that of its own output, and every EOFError for the end of a
    prompt. Output never raises here, and toto has no prompts: both come from elsewhere.
    """
    error = ended.__context__
    if isinstance(error, OSError):
        return error
    cause = None if error is None else error.__cause__
    return cause if isinstance(cause, EOFError) else None
