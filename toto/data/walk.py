"""The images, videos and tars below a folder, and a count of everything that is left alone."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from toto.data.decode import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from toto.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import NoReturn

    from toto.data.manifest import Kind

__all__ = ["Found", "describe_left", "extensions_of", "is_hidden", "visible_entries", "walk"]

SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})
"""Folders that systems and network drives make: copies and thumbnails, under the files' names."""
TAR = "tar"
SHOWN_KINDS = 8


@dataclass
class Found:
    """Paths below a folder, in no order, told apart by their names alone.

    Attributes:
        images: files that end as images do.
        videos: files that end as videos do.
        tars: files that end in .tar.
        left: what is none of these, counted: `.txt`, `hidden file`, `link to a folder`.
    """

    images: list[str] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)


def is_hidden(name: str) -> bool:
    """Return whether every lister leaves a file or folder of this name alone.

    These are names that begin with a dot, which the `._` files of macOS do too, and the folders
    that systems make.
    """
    return name.startswith(".") or name in SYSTEM_FOLDERS


def visible_entries(folder: Path) -> list[Path]:
    """Return the files and folders in a folder, without hidden ones, sorted.

    Raises:
        DataError: the folder cannot be listed.
    """
    try:
        return sorted(path for path in folder.iterdir() if not is_hidden(path.name))
    except OSError as error:
        _refuse(error)


def extensions_of(kind: Kind) -> frozenset[str]:
    """Return the extensions of a kind, in lower case and without the dot."""
    return IMAGE_EXTENSIONS if kind == "images" else VIDEO_EXTENSIONS


def walk(folder: Path) -> Found:
    """List the files in a folder and all folders below; links to folders are not followed.

    Raises:
        DataError: a folder cannot be listed.
    """
    found = Found()
    for place, subfolders, names in os.walk(folder, onerror=_refuse):
        visited = []
        for name in subfolders:
            if is_hidden(name):
                found.left["hidden folder"] += 1
            elif os.path.islink(os.path.join(place, name)):
                found.left["link to a folder"] += 1
            else:
                visited.append(name)
        subfolders[:] = visited
        for name in names:
            _sort_in(found, os.path.join(place, name), name)
    return found


def describe_left(left: Mapping[str, int]) -> str:
    """Return what was left alone as text, the most frequent first: `12 × .txt, 1 × hidden file`."""
    kinds = sorted(left.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{count:,} × {kind}" for kind, count in kinds[:SHOWN_KINDS]]
    if rest := sum(count for _, count in kinds[SHOWN_KINDS:]):
        words.append(f"{rest:,} others")
    return ", ".join(words)


def _sort_in(found: Found, path: str, name: str) -> None:
    extension = os.path.splitext(name)[1][1:].lower()
    if is_hidden(name):
        found.left["hidden file"] += 1
    elif extension not in IMAGE_EXTENSIONS | VIDEO_EXTENSIONS | {TAR}:
        found.left[f".{extension}" if extension else "file without extension"] += 1
    elif extension in IMAGE_EXTENSIONS:
        found.images.append(path)
    elif extension in VIDEO_EXTENSIONS:
        found.videos.append(path)
    else:
        found.tars.append(path)


def _refuse(error: OSError) -> NoReturn:
    raise DataError(
        f"{error.filename} cannot be listed: {error.strerror}. Correct its permissions, or move it "
        "out of the folder"
    ) from error
