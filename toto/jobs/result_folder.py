"""Folders of results that a command replaces as a whole: never in the place of other files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toto.errors import UserError

if TYPE_CHECKING:
    import re

__all__ = ["require_replaceable"]


def require_replaceable(folder: Path, ours: re.Pattern[str], command: str) -> None:
    """Refuse a place that holds anything but earlier results of the command.

    Args:
        folder: to be replaced; it need not be there.
        ours: what the names in it may be.
        command: that asks.

    Raises:
        UserError: it is a file, the current folder, or a folder with other files.
    """
    if folder.resolve() == Path.cwd():
        raise UserError(f"{folder} is the current folder. Name another one with --out")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file. Name a folder with --out")
    held = sorted(folder.iterdir()) if folder.is_dir() else []
    others = [path.name for path in held if not ours.fullmatch(path.name)]
    if others:
        raise UserError(
            f"{folder} holds {others[0]}, which {command} did not write, and the whole folder "
            "would be replaced. Name another one with --out"
        )
