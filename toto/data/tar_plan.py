"""Packing WebDataset tars: which samples they hold, and what in them is no sample.

A sample is the files of one key, which follow each other in the tar: the image or video, and `.cls`
where it has a label. Where a key leaves a choice between files, its sample is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from toto.data.check import SourceFile
from toto.data.class_folders import roles_of_tars, split_of
from toto.data.class_names import name_some
from toto.data.decode import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from toto.data.index import NO_LABEL
from toto.data.listing import relative, shown
from toto.data.manifest import Kind, SkippedFile
from toto.data.parts import LeftAlone
from toto.data.plan import PLAN_VERSION, Entry, Item, make_key
from toto.data.tar import require_tar_end
from toto.data.walk import extensions_of, is_hidden, visible_entries, walk
from toto.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

__all__ = ["TarPlan", "find_tars"]

MAX_CLASSES = 10_000_000
"""A label in a tar is below; the manifest names every class up to the largest one."""
LABEL = "cls"
OTHER: dict[Kind, Kind] = {"images": "videos", "videos": "images"}


@dataclass(frozen=True)
class _Member:
    """A file of a tar; the extension is in lower case, of what follows the name's first dot."""

    extension: str
    info: tarfile.TarInfo


@dataclass
class TarPlan:
    """WebDataset tars as img2dataset and video2dataset write them; each becomes one shard.

    The order is that of the tars. Captions (`.txt`), `.json` and the rest are counted.

    Attributes:
        source: the folder of the tars, or the one tar.
        tars: in order.
        kind: what is packed.
        kind_is_given: whether the user chose it, so that the other kind is left alone and counted.
        classes: names of the labels; None where the labels themselves tell, empty for no labels.
        left: what of the folder is no tar, counted.
    """

    source: Path
    tars: list[Path]
    kind: Kind
    kind_is_given: bool = False
    classes: tuple[str, ...] | None = None
    left: Mapping[str, int] = field(default_factory=dict)
    unit: str = field(default="bytes", init=False)

    @classmethod
    def find(
        cls,
        source: Path,
        tars: list[Path],
        *,
        kind: Kind | None = None,
        classes: tuple[str, ...] | None = None,
    ) -> TarPlan:
        """Plan the packing of what `find_tars` found.

        Raises:
            DataError: the folder holds images or videos too, or tars of several splits, or the
                first samples are neither images nor videos, or both.
        """
        if source.is_file():
            return cls(source, tars, kind or _kind_of(tars), kind is not None, classes)
        if classes != ():
            _require_one_split(source, tars)
        found = walk(source)
        if media := found.images + found.videos:
            raise DataError(
                f"{source} holds tars ({name_some([path.name for path in tars])}) and "
                f"{len(media):,} files that are unpacked (such as {relative(source, min(media))}). "
                f"Pack the tar alone: toto pack {tars[0]} OUT; or move it away and pack the folder"
            )
        below = len(found.tars) - len(tars)
        left = found.left + Counter({".tar in a folder": below} if below else {})
        return cls(source, tars, kind or _kind_of(tars), kind is not None, classes, left)

    @property
    def notes(self) -> tuple[str, ...]:
        """See Plan."""
        labels = "no labels" if self.classes == () else f"labels of .{LABEL} files alone"
        return (f"WebDataset tars, one shard each: {len(self.tars):,}; {labels}",)

    def num_shards(self) -> int:
        """See Plan."""
        return len(self.tars)

    def fingerprint(self) -> str:
        """See Plan."""
        status = [(path.name, *_status(path)) for path in self.tars]
        head = [PLAN_VERSION, self.kind, self.kind_is_given, self.classes, status]
        return hashlib.sha256(json.dumps(head).encode(errors="surrogateescape")).hexdigest()

    def items(self, shard: int) -> Iterator[Entry]:
        """See Plan.

        Raises:
            DataError: a sample with both an image and a video, a label that is none, or folders of
                several splits in one tar.
        """
        path = self.tars[shard]
        left: Counter[str] = Counter()
        seen: set[str] = set()
        folders: dict[str, bool] = {}  # of the samples, and whether all of them have labels
        number = 0
        try:
            for key, members in _samples(path, left):
                again = key in seen
                seen.add(key)
                media = self._media(path, key, members)
                if not media and self._is_other(members):
                    left.update(f".{member.extension}" for member in members)
                    continue
                labels = [m for m in members if m.extension == LABEL and self.classes != ()]
                if reason := _fault(self.kind, members, media, labels, again=again):
                    yield SkippedFile(path=shown(f"{path.name}/{key}"), reason=shown(reason))
                    continue
                (member,) = media
                left.update(f".{m.extension}" for m in members if m not in [*media, *labels])
                file = SourceFile(
                    str(path),
                    shown(f"{path.name}/{member.info.name}"),
                    member.info.size,
                    member.info.offset_data,
                    label=self._label(path, labels[0].info) if labels else NO_LABEL,
                )
                folder = key.rpartition("/")[0]
                folders[folder] = folders.get(folder, True) and file.label != NO_LABEL
                yield Item(f"{shard:05d}-{make_key(number, file.stem)}", file)
                number += 1
        except (tarfile.TarError, OSError) as error:
            yield SkippedFile(path=shown(path.name), reason=f"the tar is damaged ({error})")
        if self.classes != ():
            _require_one_split_inside(path, folders)
            if unread := [name for name, labelled in folders.items() if name and not labelled]:
                left["folder in a tar, whose name is no label"] += len(unread)
        yield LeftAlone(dict(left))

    def shard_weight(self, shard: int) -> int:
        """See Plan."""
        return _status(self.tars[shard])[0]

    def weight(self, file: SourceFile) -> int:
        """See Plan."""
        return file.size

    def _media(self, path: Path, key: str, members: list[_Member]) -> list[_Member]:
        """The files of a sample that are of the kind."""
        media = [member for member in members if member.extension in extensions_of(self.kind)]
        if media and not self.kind_is_given:
            _require_one_kind(path, key, members)
        return media

    def _is_other(self, members: list[_Member]) -> bool:
        """Whether this is a sample of the kind that the user did not choose."""
        other = extensions_of(OTHER[self.kind])
        return self.kind_is_given and any(member.extension in other for member in members)

    def _label(self, path: Path, member: tarfile.TarInfo) -> int:
        text = SourceFile(str(path), member.name, member.size, member.offset_data).read()
        limit = MAX_CLASSES if self.classes is None else len(self.classes)
        # Not int alone, which reads 1_0 as 10.
        label = int(text) if text.strip().isdigit() else -1
        if not 0 <= label < limit:
            raise DataError(
                f"{shown(str(path))}: {shown(member.name)} holds {text[:40]!r}, not the number of "
                f"a class, from 0 to {limit - 1:,}. Write the labels as such numbers, unpack the "
                "tars into folders by class, or pack without labels: --classes none"
            )
        return label


def find_tars(source: Path) -> list[Path]:
    """Return the tars of a folder, sorted, or the one tar that `source` is; not those below.

    Raises:
        DataError: `source` is a file of another kind.
    """
    if source.is_file() and source.suffix.lower() != ".tar":
        raise DataError(
            f"{source} is a file, and no .tar. Unpack it, and pack the folder, or name the folder "
            "that it is in"
        )
    if source.is_file():
        return [source]
    entries = visible_entries(source) if source.is_dir() else []
    return [path for path in entries if path.suffix.lower() == ".tar" and path.is_file()]


def _require_one_split(source: Path, tars: list[Path]) -> None:
    roles = roles_of_tars(path.stem for path in tars)
    if len(roles) < 2:
        return
    advice = "Move the tars of each split into a folder of its own, and pack these folders"
    if len(roles) == len(tars):
        commands = [
            f"  toto pack {shlex.quote(f'{source / stem}.tar')} OUT-{role}"
            for role, stem in roles.items()
        ]
        advice = "\n".join(["Pack each by itself:", *commands])
    raise DataError(
        f"{source} holds tars of the splits {' and '.join(roles)} (such as "
        f"{', '.join(roles.values())}), which would be packed together. {advice}\n"
        "or pack all of them without labels: --classes none"
    )


def _require_one_split_inside(path: Path, folders: Iterable[str]) -> None:
    """Refuse a tar with `train/` and `val/` in it."""
    found = {split_of(part): part for folder in folders for part in folder.split("/")}
    names = sorted(part for split, part in found.items() if split is not None)
    if len(names) > 1:
        raise DataError(
            f"{path} holds the splits {shown(' and '.join(names))}, which would be packed "
            "together. Unpack it and pack its folders, or pack all without labels: --classes none"
        )


def _status(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _samples(path: Path, left: Counter[str]) -> Iterator[tuple[str, list[_Member]]]:
    """The members of a tar, grouped by key: the name up to the first dot behind its folder.

    Args:
        path: of the tar.
        left: hidden members are counted in it.
    """
    last, members = "", list[_Member]()
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            archive.members = []  # type: ignore[attr-defined]  # it would keep all that it read
            if info.isdir():
                continue
            # "./1.jpg" and "1.jpg" are one file.
            *folders, name = [part for part in info.name.split("/") if part not in ("", ".")]
            if any(is_hidden(part) and part != ".." for part in (*folders, name)):
                left["hidden file"] += 1
                continue
            base, _, extension = name.partition(".")
            key = "/".join((*folders, base))
            if key != last and members:
                yield last, members
                members = []
            last = key
            members.append(_Member(extension.lower(), info))
        end = archive.offset
    if members:
        yield last, members
    require_tar_end(path, end)


def _fault(
    kind: Kind, members: list[_Member], media: list[_Member], labels: list[_Member], *, again: bool
) -> str | None:
    """Why a sample is refused; None for one image or video with at most one label."""
    names = ", ".join(member.info.name.rpartition("/")[2] for member in members)
    if again:
        return f"{names}: the key was there before; the files of a key must follow each other"
    if not media:
        extensions = sorted(m.extension or "a file without extension" for m in members)
        reason = f"no {kind} in this sample, only {' '.join(extensions)}"
        endings = {member.extension.rpartition(".")[2] for member in members}
        if endings & extensions_of(kind):
            reason += " (the first dot of a name ends its key; unpack the tar and pack the folder)"
        return reason
    if len(media) > 1:
        return f"{len(media)} {kind} under one key ({names}), and no rule says which one is meant"
    if len(labels) > 1:
        return f"{len(labels)} labels under one key ({names})"
    if any(member.info.issparse() for member in media + labels):
        return f"a sparse file in the tar ({names}), whose holes are not stored; make it without -S"
    if not all(member.info.isfile() for member in media + labels):
        return f"a link in the tar instead of a file ({names}); make it with tar --dereference"
    return None


def _require_one_kind(path: Path, key: str, members: list[_Member]) -> None:
    names = {
        kind: [m.info.name for m in members if m.extension in extensions_of(kind)] for kind in OTHER
    }
    if names["images"] and names["videos"]:
        raise DataError(
            f"{shown(str(path))}: the key {shown(key)} has both an image and a video "
            f"({shown(names['images'][0])}, {shown(names['videos'][0])}). Choose one: "
            "--kind images or --kind videos"
        )


def _kind_of(tars: list[Path]) -> Kind:
    """The kind of the first sample that is an image or a video."""
    example, damage = "", ""
    for path in tars:
        try:
            for key, members in _samples(path, Counter()):
                example = example or members[0].info.name
                _require_one_kind(path, key, members)
                extensions = {member.extension for member in members}
                for kind in OTHER:
                    if extensions & extensions_of(kind):
                        return kind
        except (tarfile.TarError, OSError) as error:
            damage = damage or str(error)  # the others may tell; it is named when its turn comes
    if damage and not example:
        raise DataError(f"{tars[0]} cannot be read as a tar ({damage}). Copy it again or unpack it")
    known = " ".join(sorted(IMAGE_EXTENSIONS | VIDEO_EXTENSIONS))
    raise DataError(
        f"{tars[0]} holds no images and no videos that are WebDataset samples (KEY.jpg, KEY.mp4, "
        f"…; there is {shown(example) or 'no file'}). What follows the first dot of a name must be "
        f"one of {known}. Unpack it, and pack the folder"
    )
