"""What goes into which shard, fixed before anything is written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from toto.data.check import SourceFile
from toto.data.decode import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from toto.data.index import NO_LABEL
from toto.data.listing import shown
from toto.data.manifest import Kind, SkippedFile
from toto.data.shards import MAX_SHARD_BYTES, MAX_SHARD_SAMPLES, ShardLimits
from toto.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from toto.data.listing import Listing

__all__ = ["FilePlan", "Item", "Plan", "TarPlan", "is_tar_source", "make_key"]

PLAN_VERSION = 2
MAX_CLASSES = 10_000_000
"""A label in a tar is below; the manifest names every class up to the largest one."""


@dataclass(frozen=True, slots=True)
class Item:
    """A file with the key of its sample."""

    key: str
    file: SourceFile


class Plan(Protocol):
    """The shards of a dataset, and what makes them what they are."""

    @property
    def source(self) -> Path:
        """What is packed."""

    @property
    def kind(self) -> Kind:
        """Of the samples."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the labels; None where the labels themselves will tell."""

    @property
    def notes(self) -> tuple[str, ...]:
        """For the user, before the work."""

    @property
    def ignored(self) -> int:
        """Files that are neither pictures nor videos."""

    @property
    def unit(self) -> str:
        """What `weight` counts: files or bytes."""

    def num_shards(self) -> int:
        """Shards, those included of which nothing may be left."""

    def fingerprint(self) -> str:
        """A hash of all that decides the bytes of the shards."""

    def items(self, shard: int) -> Iterator[Item | SkippedFile]:
        """The files of one shard, in order; a SkippedFile is known to be broken."""

    def shard_weight(self, shard: int) -> int:
        """The sum of the weights of its files, or a little more."""

    def weight(self, file: SourceFile) -> int:
        """What the progress counts for a file."""


@dataclass
class FilePlan:
    """Files ordered by a hash of their paths, so that each shard is a fair part of the whole."""

    listing: Listing
    max_shard_bytes: int = MAX_SHARD_BYTES
    max_shard_samples: int = MAX_SHARD_SAMPLES
    unit: str = field(default="files", init=False)

    def __post_init__(self) -> None:
        self._files = sorted(self.listing.files, key=_order)
        limits = ShardLimits(self.max_shard_bytes, self.max_shard_samples)
        starts = [
            number
            for number, file in enumerate(self._files)
            if limits.starts_shard(file.size, labelled=file.label != NO_LABEL)
        ]
        self._bounds = [0, *starts, len(self._files)]

    @property
    def source(self) -> Path:
        """The folder."""
        return self.listing.source

    @property
    def kind(self) -> Kind:
        """Of the files."""
        return self.listing.kind

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Of the listing."""
        return self.listing.classes

    @property
    def notes(self) -> tuple[str, ...]:
        """Of the listing."""
        return self.listing.notes

    @property
    def ignored(self) -> int:
        """Of the listing."""
        return self.listing.ignored

    def num_shards(self) -> int:
        """See Plan."""
        return len(self._bounds) - 1

    def fingerprint(self) -> str:
        """See Plan."""
        digest = hashlib.sha256()
        head = [PLAN_VERSION, self.kind, self.classes, self._bounds]
        digest.update(json.dumps(head).encode())
        for f in self._files:
            digest.update(
                f"\n{f.origin}\0{f.size}\0{f.offset}\0{f.changed}\0{f.label}".encode(
                    errors="surrogateescape"
                )
            )
        return digest.hexdigest()

    def items(self, shard: int) -> Iterator[Item | SkippedFile]:
        """See Plan."""
        first, last = self._bounds[shard : shard + 2]
        for number in range(first, last):
            file = self._files[number]
            yield Item(make_key(number, file.stem), file)

    def shard_weight(self, shard: int) -> int:
        """See Plan."""
        first, last = self._bounds[shard : shard + 2]
        return last - first

    def weight(self, file: SourceFile) -> int:
        """See Plan."""
        return 1


@dataclass
class TarPlan:
    """WebDataset tars as img2dataset and video2dataset write them; each becomes one shard.

    A sample is the members of one key: the picture or video, and `.cls` where it has one. Captions
    (`.txt`) and `.json` stay behind. The order is that of the tars.
    """

    source: Path
    tars: list[Path]
    kind: Kind
    unit: str = field(default="bytes", init=False)
    classes: None = field(default=None, init=False)
    ignored: int = field(default=0, init=False)

    @classmethod
    def find(cls, source: Path) -> TarPlan:
        """The tars of a folder, sorted, or one tar.

        Raises:
            DataError: the first samples are neither pictures nor videos.
        """
        tars = [source] if source.is_file() else sorted(source.glob("*.tar"))
        return cls(source, tars, _kind_of(tars))

    @property
    def notes(self) -> tuple[str, ...]:
        """See Plan."""
        return (
            f"{len(self.tars):,} WebDataset tars, a shard each; captions (.txt) and .json are not "
            "copied",
        )

    def num_shards(self) -> int:
        """See Plan."""
        return len(self.tars)

    def fingerprint(self) -> str:
        """See Plan."""
        status = [(path.name, *_status(path)) for path in self.tars]
        head = [PLAN_VERSION, self.kind, status]
        return hashlib.sha256(json.dumps(head).encode(errors="surrogateescape")).hexdigest()

    def items(self, shard: int) -> Iterator[Item | SkippedFile]:
        """See Plan."""
        path = self.tars[shard]
        wanted = _extensions(self.kind)
        number = 0
        try:
            for stem, members in _samples(path):
                media = [name for name in members if name.lower() in wanted]
                if not media:
                    reason = f"no {self.kind} in this sample, only {' '.join(sorted(members))}"
                    yield SkippedFile(path=shown(f"{path.name}/{stem}"), reason=shown(reason))
                    continue
                extension = min(media)
                member = members[extension]
                file = SourceFile(
                    str(path),
                    shown(f"{path.name}/{stem}.{extension}"),
                    member.size,
                    member.offset_data,
                    label=_read_label(path, members.get("cls")),
                )
                yield Item(f"{shard:05d}-{make_key(number, file.stem)}", file)
                number += 1
        except (tarfile.TarError, OSError) as error:
            yield SkippedFile(path=shown(path.name), reason=f"the tar is damaged ({error})")

    def shard_weight(self, shard: int) -> int:
        """See Plan."""
        return _status(self.tars[shard])[0]

    def weight(self, file: SourceFile) -> int:
        """See Plan."""
        return file.size


def is_tar_source(source: Path) -> bool:
    """Whether `source` is a tar, or a folder of them without pictures or videos beside them."""
    if source.is_file():
        return source.suffix == ".tar"
    media = IMAGE_EXTENSIONS | VIDEO_EXTENSIONS
    endings = {path.suffix[1:].lower() for path in source.glob("*") if path.is_file()}
    return "tar" in endings and not endings & media


def make_key(number: int, stem: str) -> str:
    """A WebDataset key, unique by its number: `000012_cafe_2` for sample 12, `café 2`."""
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    return f"{number:06d}_" + re.sub(r"[^A-Za-z0-9_-]", "_", plain)[:60]


def _order(file: SourceFile) -> bytes:
    return hashlib.blake2b(os.fsencode(file.origin), digest_size=16).digest()


def _status(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _extensions(kind: Kind) -> frozenset[str]:
    return IMAGE_EXTENSIONS if kind == "images" else VIDEO_EXTENSIONS


def _samples(path: Path) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """The members of a tar, grouped by key: the name up to the first dot behind its folder."""
    stem, members = "", dict[str, tarfile.TarInfo]()
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # it would keep all that it read
            folder, slash, name = member.name.rpartition("/")
            if not member.isfile() or name.startswith("."):
                continue
            base, _, extension = name.partition(".")
            key = f"{folder}{slash}{base}"
            if key != stem and members:
                yield stem, members
                members = {}
            stem = key
            members[extension] = member
        end = archive.offset
    if members:
        yield stem, members
    # tarfile takes a tar that was cut between two members, or in a header, for a whole one.
    with path.open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it is cut short, or the mark of its end is missing")


def _kind_of(tars: list[Path]) -> Kind:
    """Of the first sample that is a picture or a video."""
    for path in tars:
        try:
            for _, members in _samples(path):
                names = {name.lower() for name in members}
                for kind in ("images", "videos"):
                    if names & _extensions(kind):
                        return kind
        except (tarfile.TarError, OSError):
            continue  # it is named when its turn comes
    raise DataError(
        f"{tars[0]} holds no pictures and no videos that are WebDataset samples "
        "(KEY.jpg, KEY.mp4, …). Unpack it, and pack the folder"
    )


def _read_label(path: Path, member: tarfile.TarInfo | None) -> int:
    if member is None:
        return NO_LABEL
    text = SourceFile(str(path), member.name, member.size, member.offset_data).read()
    try:
        label = int(text)
    except ValueError:
        label = -1
    if not 0 <= label < MAX_CLASSES:
        raise DataError(
            f"{shown(str(path))}: {shown(member.name)} holds {text[:40]!r}, not the number of a "
            f"class, from 0 to {MAX_CLASSES - 1:,}. Write the labels as such numbers, or unpack "
            "the tars into folders by class"
        )
    return label
