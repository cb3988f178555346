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
        fate = "the split {}, which would become a class"
        if len(splits) > 1:
            fate = "the splits {}, which would be packed together as classes"
        lines = [
            f"{folder} holds {fate.format(' and '.join(splits))}. Type",
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

    A folder holds splits if the names of two of its sub-folders differ in the split alone
    (`train`, `val`; `box_train`, `box_test`); the source also if all its sub-folders are named
    after splits, even if there is one alone.

    Args:
        source: the folder.
        origins: paths of its files, relative to it, with slashes.

    Raises:
        SplitsError: there are splits.
        DataError: there are splits in several folders, such as those of classes.
    """
    children: dict[PurePosixPath, set[str]] = defaultdict(set)
    for place in {origin.rpartition("/")[0] for origin in origins}:
        path = PurePosixPath(place)
        while path.name:
            children[path.parent].add(path.name)
            path = path.parent
    found = {folder: splits for folder, names in children.items() if (splits := _splits(names))}
    top = children[PurePosixPath()]
    if top and all(split_of(name) for name in top):
        found[PurePosixPath()] = _in_order(top)
    if not found:
        return
    folder = min(found, key=lambda path: (len(path.parts), path))
    if folder.parts and len(found) > 1:
        raise DataError(
            f"{source}: several folders hold splits ({name_some(sorted(map(str, found)))}; "
            f"{' and '.join(found[folder])} in the first), which would be packed together. Move "
            "the splits above these folders and pack each with --split, or pack the folders one by "
            "one; --classes none packs all without labels"
        )
    has_classes = all(children.get(folder / name) for name in found[folder])
    raise SplitsError(source / folder, found[folder], labelled=has_classes)


def _splits(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names that differ in the split alone, training first; none without two splits."""
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in names:
        role, rest = _role_and_rest(name)
        if role is not None:
            groups[rest].append(name)
    for _, group in sorted(groups.items()):
        if len({_role_and_rest(name)[0] for name in group}) > 1:
            return _in_order(group)
    return ()


def _in_order(splits: Iterable[str]) -> tuple[str, ...]:
    def place(name: str) -> tuple[int, str]:
        role, _ = _role_and_rest(name)
        return ORDER.index(role or "train"), name

    return tuple(sorted(splits, key=place))


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
    role, rest = _role_and_rest(name)
    return None if rest else role


def _role_and_rest(name: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the split of a name and its other words: `bounding_box_test` → test, bounding, box."""
    words = _words(name)
    roles = [ROLES[word] for word in words if word in ROLES]
    rest = tuple(w for w in words if w not in ROLES and w not in FILLERS and len(w) > 1)
    return (roles[0], rest) if len(roles) == 1 else (None, tuple(words))


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case: `trainA_2017` has train and a."""
    return [word.lower() for word in re.split(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])", name) if word]


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
    notes += [
        f"{name} is taken for a class; if it is a split, give --split {shlex.quote(name)}"
        for name in folders
        if split_of(name)
    ]
    if len(folders) == 1:
        below = {file.origin.split("/")[1] for file in listing.files if file.origin.count("/") > 1}
        if len(below) > 1:
            notes.append(
                f"{folders[0]} is the only class; to take its folders ({name_some(sorted(below))}) "
                f"as classes, give {listing.source / folders[0]} as SRC"
            )
    # `shown`, as a name that is not UTF-8 differs from the text that stands for it.
    empty = [name for name in map(shown, folders_in(listing.source)) if name not in folders]
    if empty:
        notes.append(f"folders without {listing.kind}, which become no classes: {name_some(empty)}")
    return notes
