"""Which files lie in a folder, with their labels, and what a list of them says that is not so."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from toto.data.check import SourceFile
from toto.data.decode import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from toto.data.index import NO_LABEL
from toto.errors import DataError
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from toto.data.manifest import Kind

__all__ = [
    "Listing",
    "compare",
    "counted",
    "find_files",
    "first_folder",
    "labelled",
    "split_folder",
]


@dataclass(frozen=True)
class Listing:
    """What there is to pack.

    Attributes:
        source: the folder that the origins of the files are relative to.
        kind: images or videos.
        files: in any order; their origins are unique.
        classes: names of the labels; empty without.
        ignored: files that are neither pictures nor videos.
        notes: sentences about what is missing, not listed, or chosen.
    """

    source: Path
    kind: Kind
    files: list[SourceFile]
    classes: tuple[str, ...] = ()
    ignored: int = 0
    notes: tuple[str, ...] = ()


def find_files(folder: Path) -> Listing:
    """The pictures, or the videos, in all sub-folders; hidden ones left out, links not followed.

    Raises:
        DataError: there is no folder, nothing to pack in it, or both pictures and videos.
    """
    if not folder.is_dir():
        raise DataError(f"no folder at {folder}. Give the folder of the pictures or videos")
    images: list[SourceFile] = []
    videos: list[SourceFile] = []
    ignored = 0
    for place, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            extension = os.path.splitext(name)[1][1:].lower()
            if name.startswith("."):
                continue
            if extension in IMAGE_EXTENSIONS:
                images.append(_source_file(folder, os.path.join(place, name)))
            elif extension in VIDEO_EXTENSIONS:
                videos.append(_source_file(folder, os.path.join(place, name)))
            else:
                ignored += 1
    if images and videos:
        raise DataError(
            f"{folder} holds {len(images)} pictures (such as {_least(images)}) and {len(videos)} "
            f"videos (such as {_least(videos)}). Move them into two folders and pack them apart"
        )
    if not images and not videos:
        known = " ".join(sorted(IMAGE_EXTENSIONS | VIDEO_EXTENSIONS))
        raise DataError(
            f"{folder} holds no pictures and no videos ({ignored} other files). "
            f"toto packs files that end in: {known}"
        )
    return Listing(
        folder, "images" if images else "videos", sorted(images or videos, key=_path), (), ignored
    )


def split_folder(source: Path, split: str | None) -> Path:
    """`source/split`; without a split `source/train` where that is there, and else `source`.

    Raises:
        DataError: no such folder.
    """
    if not source.is_dir():
        raise DataError(f"no folder at {source}. Give the folder of the pictures or videos")
    folder = source / (split or "train")
    if folder.is_dir():
        return folder
    if split is None:
        return source
    there = ", ".join(sorted(path.name for path in source.iterdir() if path.is_dir())) or "none"
    raise DataError(
        f"{source} has no folder {split!r} (folders there: {there}). Give one of these as --split, "
        "or the folder of the files as SRC and no --split"
    )


def first_folder(file: SourceFile) -> str | None:
    """The first-level folder of a file; None for one that lies beside the folders."""
    name, slash, _ = file.origin.partition("/")
    return name if slash else None


def labelled(
    listing: Listing, classes: tuple[str, ...], class_of: Callable[[SourceFile], str | None]
) -> Listing:
    """The same files with the labels that `class_of` tells; None is no label."""
    numbers = {name: number for number, name in enumerate(classes)}
    files = [
        replace(file, label=NO_LABEL if (name := class_of(file)) is None else numbers[name])
        for file in listing.files
    ]
    return replace(listing, files=files, classes=classes)


def compare(listed: Iterable[str], found: Iterable[str], where: str) -> tuple[str, ...]:
    """Sentences about the names that are listed and not found, and those found and not listed."""
    listed, found = set(listed), set(found)
    notes = []
    if missing := listed - found:
        notes.append(
            f"{len(missing):,} of the {len(listed):,} in {where} are missing{counted(missing)}"
        )
    if unlisted := found - listed:
        notes.append(
            f"{number_of(len(unlisted), 'file')} not in {where}{counted(unlisted)}; packed too"
        )
    return tuple(notes)


def counted(names: Iterable[str]) -> str:
    """`, such as X`: one of the names."""
    return f", such as {min(names)}"


def shown(path: str) -> str:
    r"""A path as text, also where its name is not valid UTF-8: such bytes read `\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _source_file(folder: Path, path: str) -> SourceFile:
    relative = os.path.relpath(path, folder).replace(os.sep, "/")
    try:
        status = os.stat(path)
    except OSError:  # a link to nothing: it is named when it is read
        return SourceFile(path, shown(relative), size=0)
    return SourceFile(path, shown(relative), status.st_size, changed=status.st_mtime_ns)


def _least(files: list[SourceFile]) -> str:
    return min(file.origin for file in files)


def _path(file: SourceFile) -> str:
    return file.path
