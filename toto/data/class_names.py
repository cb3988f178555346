"""Lists of class names: given with `--classes`, compared, and applied to a listing."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from toto.data.index import NO_LABEL
from toto.data.manifest import MANIFEST_FILE, read_manifest
from toto.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toto.data.listing import Listing

__all__ = ["NO_CLASSES", "differing_classes", "name_some", "read_class_names", "relabelled"]

NO_CLASSES = "none"
SHOWN_NAMES = 5


def read_class_names(text: str) -> tuple[str, ...]:
    """Return the class names that `--classes` asks for; none of them for `none`.

    Args:
        text: `none`, the folder of a packed dataset, or a text file with one name per line.

    Raises:
        DataError: there is no such list, it is empty, or it names a class twice.
    """
    if text == NO_CLASSES:
        return ()
    path = Path(text)
    if (path / MANIFEST_FILE).is_file():
        names = read_manifest(path).classes
        if not names:
            raise DataError(f"--classes {path}: that dataset has no labels. Name another, or none")
        return names
    if not path.is_file():
        raise DataError(
            f"--classes {path}: neither a packed dataset nor a text file. Name the packed training "
            "split, a file with one class per line, or none to pack without labels"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"--classes {path}: {error}. Write it as UTF-8 text") from error
    names = tuple(name for line in lines if (name := line.strip()))
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice or not names:
        what = f"names {name_some(twice)} twice" if twice else "is empty"
        raise DataError(f"--classes {path} {what}. Write one class per line")
    return names


def relabelled(listing: Listing, classes: tuple[str, ...]) -> Listing:
    """Return a listing whose labels are numbers in another list of classes, matched by name.

    Args:
        listing: with labels of its own.
        classes: the names in the order of their numbers; without any, the labels are dropped.

    Raises:
        DataError: a class of the listing is not among `classes`, or the listing has no labels.
    """
    if not classes:
        files = [replace(file, label=NO_LABEL) for file in listing.files]
        return replace(listing, files=files, classes=())
    if not listing.classes:
        raise DataError(
            f"{listing.source} has no labels: its files are in no folders. Sort them into one "
            "folder per class, or pack without --classes"
        )
    numbers = {_composed(name): number for number, name in enumerate(classes)}
    used = {listing.classes[file.label] for file in listing.files if file.label != NO_LABEL}
    unknown = sorted(name for name in used if _composed(name) not in numbers)
    if unknown:
        raise DataError(
            f"{listing.source}: {name_some(unknown)} not among the {len(classes):,} classes of "
            f"--classes ({name_some(classes)}). Rename or remove these folders, or pack both "
            "splits with a list of all classes"
        )
    files = [
        file
        if file.label == NO_LABEL
        else replace(file, label=numbers[_composed(listing.classes[file.label])])
        for file in listing.files
    ]
    notes = listing.notes
    composed = {_composed(name) for name in used}
    if unused := [name for name in classes if _composed(name) not in composed]:
        share = f"{len(unused):,} of {len(classes):,}"
        notes = (*notes, f"classes without a file here ({share}): {name_some(unused)}")
    return replace(listing, files=files, classes=classes, notes=notes)


def same_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of names that are equal but for case or Unicode normalisation."""
    first: dict[str, str] = {}
    pairs = []
    for name in names:
        key = _composed(name).casefold()
        if key in first:
            pairs.append((first[key], name))
        first.setdefault(key, name)
    return pairs


def differing_classes(found: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    """Return how two class lists differ: `has the classes fox and lacks dog`."""
    lacking = [name for name in wanted if name not in set(found)]
    extra = [name for name in found if name not in set(wanted)]
    words = [f"has the classes {name_some(extra)}"] if extra else []
    words += [f"lacks {name_some(lacking)}"] if lacking else []
    return " and ".join(words) or "has the same classes in another order"


def name_some(names: Sequence[str]) -> str:
    """Return the first few names with commas, and how many more there are."""
    shown = ", ".join(names[:SHOWN_NAMES])
    more = len(names) - SHOWN_NAMES
    return f"{shown} and {more:,} more" if more > 0 else shown


def _composed(name: str) -> str:
    """The name in the composed form: macOS writes the names of folders decomposed."""
    return unicodedata.normalize("NFC", name)
