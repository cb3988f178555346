"""Files that appear complete or not at all."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from toto.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; the file becomes `path` once the block has ended well.

    Raises:
        RunError: the disk is full, or the folder is missing or refuses.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error}. Make room or write elsewhere"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
