"""Files of a run that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from toto.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["disk_errors", "sync", "write_atomic"]


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What the system says against writing `path`, as a RunError that says how to go on."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error}. Make room, or mend the permissions, and go on "
            "with --resume"
        ) from error


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step: a temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
