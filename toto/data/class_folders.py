"""Folders as classes: when the first-level folders are labels, and when they are splits instead."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from toto.data.class_names import name_some, same_names
from toto.data.listing import first_folder, folders_in, labelled, shown
from toto.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from toto.data.listing import Listing

__all__ = ["SplitsError", "label_by_folders", "require_no_splits", "roles_of_tars", "split_of"]

ROLES = {
    "train": "train", "training": "train", "trainval": "train", "trainset": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "eval": "val",
    "heldout": "val", "holdout": "val", "valset": "val",
    "test": "test", "testing": "test", "testset": "test",
}  # fmt: skip
"""Words for splits in the names of folders, in lower case, and which split each is."""
FILLERS = {"clips", "data", "frames", "image", "images", "imgs", "set", "split", "video", "videos"}
"""Words that such names have besides: `images_train`, `val-set`."""
ORDER = ("train", "val", "test")


class SplitsError(DataError):
    """A folder of splits, whose files would be packed together; says the commands to type.

    Args:
        folder: that holds the splits.
        splits: names of their folders, training first.
        labelled: whether each split has folders of its own, which are the classes.
        out: the dataset that was asked for.
    """

    def __init__(
        self, folder: Path, splits: tuple[str, ...], *, labelled: bool, out: str = "OUT"
    ) -> None:
        self.folder, self.splits, self.labelled = folder, splits, labelled
        out = _without_split(out)
        shared = f" --classes {shlex.quote(f'{out}-{splits[0]}')}" if labelled else ""
        commands = [
            shlex.join(["toto", "pack", str(folder), f"{out}-{split}", "--split", split])
            + (shared if number else "")
            for number, split in enumerate(splits)
        ]
        what = "the split" if len(splits) == 1 else "the splits"
        lines = [
            f"{folder} holds {what} {' and '.join(splits)}, which would be packed together as "
            "classes. Type",
            *(f"  {command}" for command in commands),
            "or name the classes with --classes FILE; --classes none packs all without labels",
        ]
        super().__init__("\n".join(lines))

    def for_output(self, out: Path) -> SplitsError:
        """Return the same error with commands that write next to `out`."""
        return SplitsError(self.folder, self.splits, labelled=self.labelled, out=str(out))


def _without_split(out: str) -> str:
    """Return the name of a dataset without the split it ends with: `videos` of `videos-train`."""
    name, dash, last = out.rpartition("-")
    return name if dash and last.casefold() in ROLES else out


def require_no_splits(source: Path, origins: Iterable[str]) -> None:
    """Refuse folders that are splits: they would become classes, or be mixed in one class.

    A folder holds splits if its sub-folders have the names of two of them; the source also if all
    its sub-folders have such names, even if there is one alone.

    Args:
        source: the folder.
        origins: paths of its files, relative to it, with slashes.

    Raises:
        SplitsError: there are splits.
    """
    children: dict[PurePosixPath, set[str]] = defaultdict(set)
    for place in {origin.rpartition("/")[0] for origin in origins}:
        path = PurePosixPath(place)
        while path.name:
            children[path.parent].add(path.name)
            path = path.parent
    for folder in sorted(children, key=lambda path: (len(path.parts), path)):
        names = children[folder]
        roles = {name: role for name in names if (role := split_of(name)) is not None}
        splits = sorted(roles, key=lambda name: (ORDER.index(roles[name]), name))
        alone = not folder.parts and len(splits) == len(names)
        if splits and (len(set(roles.values())) > 1 or alone):
            has_classes = all(children.get(folder / name) for name in splits)
            raise SplitsError(source / folder, tuple(splits), labelled=has_classes)


def roles_of_tars(stems: Iterable[str]) -> dict[str, str]:
    """Return the splits that names of tars contain, such as `imagenet-train-000000`.

    Returns:
        split → the first such name, in the order training, validation, test.
    """
    found: dict[str, str] = {}
    for stem in sorted(stems):
        for role in {ROLES[word] for word in _words(stem) if word in ROLES}:
            found.setdefault(role, stem)
    return {role: found[role] for role in ORDER if role in found}


def split_of(name: str) -> str | None:
    """Return the split that a folder is named after, as `train2017` and `val_images` are."""
    words = [word for word in _words(name) if word not in FILLERS]
    return ROLES.get(words[0]) if len(words) == 1 else None


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\W\d_]+", name.lower()) if word]


def label_by_folders(listing: Listing) -> Listing:
    """Return a listing whose classes are the first-level folders, sorted; without folders, none.

    Raises:
        DataError: some files are in folders and others next to them, or two folders have one name
            in two Unicode forms.
    """
    names = {first_folder(file) for file in listing.files}
    folders = tuple(sorted(name for name in names if name is not None))
    if not folders:
        return listing
    if None in names:
        loose = [file.origin for file in listing.files if first_folder(file) is None]
        raise DataError(
            f"{listing.source}: files next to the folders ({name_some(folders)}) would have no "
            f"class: {name_some(sorted(loose))}. Move them into a folder, or pack everything "
            "without labels: --classes none"
        )
    return replace(
        labelled(listing, folders, first_folder),
        notes=(*listing.notes, *_notes_on_names(listing, folders)),
    )


def _notes_on_names(listing: Listing, folders: tuple[str, ...]) -> list[str]:
    notes = []
    for one, other in same_names(folders):
        if one.casefold() != other.casefold():
            raise DataError(
                f"{listing.source}: the folders {one!a} and {other!a} have the same name in two "
                "Unicode forms and would become two classes. Move their files into one of them"
            )
        notes.append(f"{one} and {other} are two classes; their names differ in case alone")
    # `shown`, as a name that is not UTF-8 differs from the text that stands for it.
    empty = [name for name in map(shown, folders_in(listing.source)) if name not in folders]
    if empty:
        notes.append(f"folders without {listing.kind}, which become no classes: {name_some(empty)}")
    return notes
