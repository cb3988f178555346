"""The files of a folder with their labels, and what a list of them says that is not so."""

from __future__ import annotations

import os
import shlex
import stat
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from toto.data.check import SourceFile
from toto.data.decode import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from toto.data.index import NO_LABEL
from toto.data.walk import describe_left, visible_entries, walk
from toto.errors import DataError
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from toto.data.manifest import Kind

__all__ = [
    "Listing",
    "compare",
    "counted",
    "find_files",
    "first_folder",
    "folders_in",
    "labelled",
    "relative",
    "split_folder",
]

SHOWN_FOLDERS = 5


@dataclass(frozen=True)
class Listing:
    """What there is to pack.

    Attributes:
        source: the folder that the origins of the files are relative to.
        kind: images or videos.
        files: in any order; their origins are unique.
        classes: names of the labels; empty without.
        left: what is in the folder and is not packed, counted by kind: `.txt`, `hidden file`.
        notes: sentences about what is missing, not listed, or chosen.
    """

    source: Path
    kind: Kind
    files: list[SourceFile]
    classes: tuple[str, ...] = ()
    left: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def find_files(folder: Path, kind: Kind | None = None) -> Listing:
    """Return the images, or the videos, in all sub-folders.

    Hidden files and folders are left alone, and links to folders are not followed; both are
    counted.

    Args:
        folder: to be listed.
        kind: what to pack where the folder holds both; the other kind is counted then.

    Raises:
        DataError: there is no folder, nothing to pack in it, or both images and videos.
    """
    if not folder.is_dir():
        raise DataError(_no_folder(folder))
    found = walk(folder)
    if found.images and found.videos and kind is None:
        raise DataError(
            f"{folder} holds {number_of(len(found.images), 'image')} (such as "
            f"{relative(folder, min(found.images))}) and "
            f"{number_of(len(found.videos), 'video')} (such as "
            f"{relative(folder, min(found.videos))}). Choose one: --kind images or --kind videos"
        )
    chosen = kind or ("images" if found.images else "videos")
    paths, others = (
        (found.images, found.videos) if chosen == "images" else (found.videos, found.images)
    )
    left = found.left + Counter(os.path.splitext(path)[1].lower() for path in others + found.tars)
    if not paths and found.tars:
        raise DataError(_only_tars(folder, found.tars))
    if not paths:
        known = " ".join(sorted(IMAGE_EXTENSIONS | VIDEO_EXTENSIONS))
        what = f"no {kind}" if kind else "no images and no videos"
        raise DataError(
            f"{folder} holds {what} (there: {describe_left(left) or 'nothing'}). toto packs files "
            f"that end in: {known}; and folders of WebDataset tars"
        )
    files = [file for path in sorted(paths) if (file := _source_file(folder, path)) is not None]
    if len(files) < len(paths):
        left["pipe or device"] = len(paths) - len(files)
    return Listing(folder, chosen, files, (), left)


def split_folder(source: Path, split: str | None) -> Path:
    """Return `source/split`; without a split `source/train` if that exists, and else `source`.

    Raises:
        DataError: no such folder.
    """
    if not source.is_dir():
        raise DataError(_no_folder(source))
    folder = source / (split or "train")
    if folder.is_dir():
        return folder
    if split is None:
        return source
    there = ", ".join(folders_in(source)) or "none"
    raise DataError(
        f"{source} has no folder {split!r} (folders there: {there}). Give one of these as --split, "
        "or the folder of the files as SRC and no --split"
    )


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, without hidden ones, sorted."""
    return [path.name for path in visible_entries(folder) if path.is_dir()]


def relative(folder: Path, path: str) -> str:
    """Return a path below a folder as text, relative to it and with slashes."""
    return shown(os.path.relpath(path, folder).replace(os.sep, "/"))


def first_folder(file: SourceFile) -> str | None:
    """Return the first-level folder of a file; None for one that is next to the folders."""
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
    """Return sentences about the names that are listed and not found, the other way, or twice."""
    listed, files = set(listed), Counter(found)
    found = set(files)
    notes = []
    if twice := [name for name, count in files.items() if count > 1]:
        notes.append(f"names with several files: {len(twice):,}{counted(twice)}; all are packed")
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


def _source_file(folder: Path, path: str) -> SourceFile | None:
    """A file to pack; None for a pipe or a device, whose reading would wait forever."""
    origin = relative(folder, path)
    try:
        status = os.stat(path)
    except OSError:  # a link to nothing: it is named when it is read
        return SourceFile(path, origin, size=0)
    if not stat.S_ISREG(status.st_mode):
        return None
    return SourceFile(path, origin, status.st_size, changed=status.st_mtime_ns)


def _only_tars(folder: Path, tars: list[str]) -> str:
    places = sorted({os.path.dirname(path) for path in tars})
    return "\n".join(
        [
            f"{folder} holds tars in folders, and no images or videos. Pack these folders:",
            *(
                f"  {shlex.join(['toto', 'pack', place, 'OUT'])}"
                for place in places[:SHOWN_FOLDERS]
            ),
        ]
    )


def _no_folder(path: Path) -> str:
    if path.is_file():
        return f"{path} is a file. Give a folder of images or videos, or a .tar of WebDataset"
    return f"no folder at {path}. Give the folder of the images or videos"
