"""Commands about the published weights: `toto weights list`, `toto weights get`."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Put the commands into the application."""
    group = typer.Typer(no_args_is_help=True, help="Fetch the published weights of tokenizers.")
    group.command("list")(list_)
    group.command()(get)
    app.add_typer(group, name="weights")


def list_() -> None:
    """List the published weights: addresses, sizes, licences, and which are here."""
    from toto.jobs.inspect import list_weights

    list_weights()


def get(
    name: Annotated[str, typer.Argument(help="as in `toto weights list`")],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="URL|PATH",
            help="take the file, or the folder of the files, from here instead",
        ),
    ] = None,
) -> None:
    """Fetch published weights and convert them; a recipe then says `weights: official:NAME`.

    They lie in $TOTO_HOME/weights, by default ~/.cache/toto/weights.
    """
    from toto.jobs.weights import get_weights

    get_weights(name, source=source)
