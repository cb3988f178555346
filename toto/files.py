"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from toto.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["PARTIAL", "disk_errors", "locked", "replacing", "sync", "write_atomic"]

PARTIAL = ".partial"
"""How the name of what is not whole yet ends."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What the system says against writing `path`, as a RunError that says how to go on."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error}. Make room or mend the permissions, and run the "
            "command again; a training run goes on with --resume"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; the file becomes `path` once the block has ended well.

    Raises:
        OSError: the disk is full, or the folder is missing or refuses; `path` is as it was.
    """
    unfinished = path.with_name(f".{path.name}{PARTIAL}")
    try:
        yield unfinished
        sync(unfinished)
        unfinished.replace(path)
        sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; others wait. It ends with the block, or with the process.

    Raises:
        OSError: the folder is missing or refuses, or its file system knows no locks.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # The one before may have removed the file while we waited: then the name is another's.
            if not _is_named(descriptor, path):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether `path` is the name of this open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step; see `replacing`."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
