"""How the datasets of the field lie on disk, by name: each layout lists the files of a folder.

What a dataset's own list names and the folder has not, or the other way round, is counted in the
listing's notes, never passed over.
"""

from __future__ import annotations

import csv
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from toto.data.check import SourceFile
from toto.data.class_folders import label_by_folders, require_no_splits
from toto.data.class_names import name_some, relabelled
from toto.data.decode import IMAGE_EXTENSIONS
from toto.data.kinetics import list_kinetics
from toto.data.listing import (
    Listing,
    compare,
    find_files,
    first_folder,
    folders_in,
    labelled,
    shown,
    split_folder,
)
from toto.data.tar import require_tar_end
from toto.data.walk import is_hidden
from toto.errors import DataError

if TYPE_CHECKING:
    from toto.data.manifest import Kind

__all__ = ["LAYOUTS", "list_source"]

Layout = Callable[[Path, str | None], Listing]
"""From SRC and a split to the files."""

SYNSET = re.compile(r"n\d{8}")
EGO4D_FOLDERS = ("full_scale", "video_540ss")
HOWTO100M_LIST = "HowTo100M_v1.csv"


def list_source(
    layout: str,
    source: Path,
    split: str | None = None,
    *,
    kind: Kind | None = None,
    classes: tuple[str, ...] | None = None,
) -> Listing:
    """Return the files of `source` in one of LAYOUTS.

    Args:
        layout: its name.
        source: the folder.
        split: the part of it.
        kind: what to pack of a plain folder that holds both images and videos.
        classes: the names of the labels in their order, instead of the layout's own; empty: none.

    Raises:
        DataError: an unknown layout, a folder that is not laid out so, a folder of splits, or a
            class that is not among `classes`.
    """
    if layout not in LAYOUTS:
        raise DataError(f"--as {layout}: unknown. toto knows {', '.join(LAYOUTS)}")
    if layout == "folder":
        return _list_folder(source, split, kind, classes)
    if kind is not None:
        raise DataError(f"--kind is for plain folders and tars; leave it out with --as {layout}")
    listing = LAYOUTS[layout](source, split)
    if split is None and listing.source != source and listing.source.name == "train":
        others = [name for name in folders_in(listing.source.parent) if name != "train"]
        if others:
            listing = _noted(listing, (f"not packed: {name_some(others)}; see --split",))
    return listing if classes is None else relabelled(listing, classes)


def _list_folder(
    source: Path,
    split: str | None,
    kind: Kind | None = None,
    classes: tuple[str, ...] | None = None,
) -> Listing:
    """Where every file is in a sub-folder, the first-level folders are the classes, sorted."""
    listing = find_files(split_folder(source, split) if split else source, kind)
    if classes == ():
        return listing
    if classes is not None:
        return relabelled(label_by_folders(listing), classes)
    require_no_splits(listing.source, (file.origin for file in listing.files))
    return label_by_folders(listing)


def _list_imagenet1k(source: Path, split: str | None) -> Listing:
    """`train/<wnid>/*.JPEG`, `val/<wnid>/*.JPEG`, also below Kaggle's ILSVRC/Data/CLS-LOC."""
    kaggle = source / "ILSVRC" / "Data" / "CLS-LOC"
    folder = split_folder(kaggle if kaggle.is_dir() else source, split)
    return _by_synset(find_files(folder), expected=1000)


def _list_imagenet21k(source: Path, split: str | None) -> Listing:
    """A folder or a tar for each synset: `<wnid>/*.JPEG`, or winter21's `<wnid>.tar`."""
    folder = split_folder(source, split)
    tars = sorted(path for path in folder.glob("n*.tar") if SYNSET.fullmatch(path.stem))
    unpacked = [path.name for path in folder.glob("n*") if path.is_dir()]
    if tars and unpacked:
        raise DataError(
            f"{folder} holds both tars (such as {tars[0].name}) and folders (such as "
            f"{min(unpacked)}). Move the ones or the others away"
        )
    listing = _members(folder, tars) if tars else find_files(folder)
    return _by_synset(listing, expected=None)


def _by_synset(listing: Listing, expected: int | None) -> Listing:
    classes = {first_folder(file) for file in listing.files}
    strange = {name for name in classes if name is None or not SYNSET.fullmatch(name)}
    if strange:
        example = next(file.origin for file in listing.files if first_folder(file) in strange)
        raise DataError(
            f"{listing.source} is not laid out as ImageNet is: {example} lies in no folder of a "
            "synset (such as n01440764). Sort the pictures into such folders, or choose a part "
            "with --split, or pack --as folder"
        )
    listing = labelled(listing, tuple(sorted(map(str, classes))), first_folder)
    if expected in (None, len(classes)):
        return listing
    note = f"{len(classes):,} of the {expected:,} classes are there"
    return replace(listing, notes=(*listing.notes, note))


def _members(folder: Path, tars: list[Path]) -> Listing:
    """The images inside tars, each as if in a folder of the tar's name."""
    files: list[SourceFile] = []
    left: Counter[str] = Counter()
    for path in tars:
        status = path.stat()
        seen: set[str] = set()
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    name = member.name.rpartition("/")[2]
                    extension = name.rpartition(".")[2].lower()
                    if member.isdir():
                        continue
                    if is_hidden(name) or extension not in IMAGE_EXTENSIONS:
                        left["hidden file" if is_hidden(name) else f".{extension}"] += 1
                        continue
                    if member.name in seen or not member.isfile() or member.issparse():
                        what = "there twice" if member.name in seen else "a link or a sparse file"
                        raise DataError(
                            f"{path}: {shown(member.name)} is {what}. Unpack the tar into a folder "
                            f"{path.stem} and move it away"
                        )
                    seen.add(member.name)
                    files.append(
                        SourceFile(
                            str(path),
                            shown(f"{path.stem}/{name}"),
                            member.size,
                            member.offset_data,
                            status.st_mtime_ns,
                        )
                    )
            require_tar_end(path, archive.offset)
        except tarfile.TarError as error:
            raise DataError(f"{path}: {error}. Copy it again") from error
    if not files:
        raise DataError(f"the {len(tars)} tars in {folder} hold no images")
    return Listing(folder, "images", files, (), left)


def _list_ego4d(source: Path, split: str | None) -> Listing:
    """What the Ego4D CLI makes: `full_scale/<video_uid>.mp4` or `video_540ss/…`, `manifest.csv`."""
    names = [split] if split else EGO4D_FOLDERS
    places = [source, *sorted(source.glob("v[0-9]*"))]
    found = [place / name for place in places for name in names if (place / name).is_dir()]
    if not found and source.name in EGO4D_FOLDERS:
        found = [source]
    if len(found) != 1:
        what = ", ".join(map(str, found)) or "neither of them"
        raise DataError(
            f"{source} should hold {' or '.join(names)}, and there is {what}. Give the folder that "
            "the Ego4D CLI wrote, and --split full_scale or --split video_540ss where both are"
        )
    (folder,) = found
    listing = find_files(folder)
    stems = [file.stem for file in listing.files]
    manifest, overview = folder / "manifest.csv", folder.parent / "ego4d.json"
    if manifest.is_file():
        return _noted(listing, compare(_column(manifest, "video_uid"), stems, str(manifest)))
    if overview.is_file():
        return _noted(listing, compare(_ego4d_videos(overview), stems, str(overview)))
    return _noted(listing, (f"{manifest} is missing: whether all videos are there is not known",))


def _ego4d_videos(path: Path) -> set[str]:
    try:
        return {video["video_uid"] for video in json.loads(path.read_bytes())["videos"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is not Ego4D's: {error!r}. Download it again") from error


def _list_howto100m(source: Path, split: str | None) -> Listing:
    """Videos named by their ids, with HowTo100M_v1.csv beside them or one folder up."""
    folder = split_folder(source, split)
    listing = find_files(folder)
    stems = [file.stem for file in listing.files]
    lists = [place / HOWTO100M_LIST for place in (folder, folder.parent)]
    listed = next((path for path in lists if path.is_file()), None)
    if listed is None:
        note = f"no {HOWTO100M_LIST} there: whether all videos are there is not known"
        return _noted(listing, (note,))
    return _noted(listing, compare(_column(listed, "video_id"), stems, str(listed)))


def _column(path: Path, name: str) -> set[str]:
    with path.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines)
        if name not in (rows.fieldnames or ()):
            raise DataError(f"{path} has no column {name!r}. Download it again, or move it away")
        return {row[name] for row in rows}


def _noted(listing: Listing, notes: tuple[str, ...]) -> Listing:
    return replace(listing, notes=(*listing.notes, *notes))


LAYOUTS: dict[str, Layout] = {
    "folder": _list_folder,
    "imagenet1k": _list_imagenet1k,
    "imagenet21k": _list_imagenet21k,
    "kinetics400": partial(list_kinetics, 400),
    "kinetics600": partial(list_kinetics, 600),
    "kinetics700": partial(list_kinetics, 700),
    "ego4d": _list_ego4d,
    "howto100m": _list_howto100m,
}
