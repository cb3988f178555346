"""Kinetics as CVDF distributes it: clips `{youtube_id}_{start:06d}_{end:06d}.mp4` and csv files.

The csv has the columns label, youtube_id, time_start, time_end, split (some files leave the header
out). A list of `file,label` does as well, for a part of the clips under other names.
"""

from __future__ import annotations

import csv
import itertools
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from toto.data.listing import Listing, compare, counted, find_files, labelled, split_folder
from toto.data.walk import is_hidden
from toto.errors import DataError
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["list_kinetics"]

COLUMNS = ["label", "youtube_id", "time_start", "time_end", "split"]
YOUTUBE_ID = 11
Labels = dict[str, str | None]
"""Class of a clip by the stem of its file; None where it is not known."""
Rows = list[tuple[str, str | None]]
"""The same as the rows of a file have it, which may name a clip twice."""


def list_kinetics(num_classes: int, source: Path, split: str | None) -> Listing:
    """The clips of one split, flat or in folders by class, with the labels of the annotations.

    The classes are those of all annotation files, so that every split has the same numbers.

    Raises:
        DataError: no annotations, or none that can be read.
    """
    folder = split_folder(source, split)
    listing = find_files(folder)
    tables = _annotations(source, folder)
    if not tables:
        raise DataError(
            f"no annotations for {folder}: no csv in {source}, {source / 'annotations'} or "
            f"{folder.parent / 'annotations'} has the columns {', '.join(COLUMNS)}. Put CVDF's "
            "there, or pack --as folder"
        )
    classes = tuple(sorted({name for rows in tables.values() for _, name in rows if name}))
    own = [path for path in tables if folder.name in re.split(r"[_-]", path.stem)]
    listed, contradicted = _merge([tables[path] for path in own or tables])
    entry_of = _Matcher(listed)
    listing = labelled(listing, classes, lambda file: listed.get(entry_of(file.stem)))
    where = ", ".join(path.name for path in own or tables)
    notes = [
        *compare(listed, [entry_of(file.stem) for file in listing.files], where),
        *_unlabelled(listing),
    ]
    if contradicted:
        notes.append(
            f"clips with several classes in {where}: {len(contradicted):,}{counted(contradicted)}; "
            "the first is taken"
        )
    if len(classes) != num_classes:
        notes.append(f"{len(classes):,} of the {num_classes} classes are in the annotations")
    return replace(listing, notes=(*listing.notes, *notes))


def _merge(tables: list[Rows]) -> tuple[Labels, set[str]]:
    """The first class of each clip, and the clips that other rows give another class."""
    labels: Labels = {}
    contradicted = set()
    for stem, label in itertools.chain.from_iterable(tables):
        known = labels.get(stem)
        if known and label and known != label:
            contradicted.add(stem)
        labels[stem] = known or label
    return labels, contradicted


class _Matcher:
    """From the stem of a file to that of its row: the same, or the one row of the same video."""

    def __init__(self, listed: Labels) -> None:
        self._listed = listed
        self._by_id: dict[str, str | None] = {}
        for stem in listed:
            youtube_id = stem[:YOUTUBE_ID]
            self._by_id[youtube_id] = None if youtube_id in self._by_id else stem

    def __call__(self, stem: str) -> str:
        if stem in self._listed:
            return stem
        return self._by_id.get(stem[:YOUTUBE_ID]) or stem


def _annotations(source: Path, folder: Path) -> dict[Path, Rows]:
    """Every csv of annotations, and CVDF's txt of Kinetics-600, whose csv are incomplete.

    Raises:
        DataError: two files of one name differ, or one has a row that is no clip.
    """
    places = dict.fromkeys([source / "annotations", source, folder, folder.parent / "annotations"])
    tables: dict[str, tuple[Path, Rows]] = {}
    for pattern in ("*.csv", "*.txt"):  # a txt takes the place of its csv
        for path in (path for place in places for path in sorted(place.glob(pattern))):
            rows = None if is_hidden(path.name) else _read(path)
            if rows is None:
                continue
            other, before = tables.get(path.stem, (path, rows))
            if other.suffix == path.suffix and before != rows:
                raise DataError(f"{other} and {path} differ. Move one of them away")
            tables[path.stem] = (path, rows)
    return dict(tables.values())


def _read(path: Path) -> Rows | None:
    """The clips of one file; None where it holds something else."""
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
        rows = (row for row in csv.reader(lines) if row)
        try:
            header = next(rows, [])
        except csv.Error:  # a line without end, as of a model or an archive
            return None
        numbered = enumerate(rows, start=2)
        if len(header) == len(COLUMNS) and header[2].isdecimal():
            numbered = enumerate(itertools.chain([header], rows), start=1)
            header = COLUMNS
        if not ({*COLUMNS[:4]} <= {*header} or {"file", "label"} <= {*header}):
            return None
        try:
            return _rows(path, header, numbered)
        except csv.Error as error:
            raise DataError(f"{path}: {error}. Take CVDF's csv") from error


def _rows(path: Path, header: list[str], rows: Iterable[tuple[int, list[str]]]) -> Rows:
    found: Rows = []
    for number, row in rows:
        try:
            entry = dict(zip(header, row, strict=False))
            found.append((_stem(entry), entry["label"] or None))
        except (KeyError, ValueError) as error:
            raise DataError(f"{path}, row {number}: {row}: {error!r}. Take CVDF's csv") from error
    return found


def _stem(entry: dict[str, str]) -> str:
    if "file" in entry:
        return entry["file"].rpartition("/")[2].rpartition(".")[0]
    # Some lists write the times as 12.0.
    start, end = (int(float(entry[name])) for name in ("time_start", "time_end"))
    return f"{entry['youtube_id']}_{start:06d}_{end:06d}"


def _unlabelled(listing: Listing) -> list[str]:
    names = [file.origin for file in listing.files if file.label < 0]
    return [f"{number_of(len(names), 'clip')} without a label{counted(names)}"] if names else []
