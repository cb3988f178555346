"""What goes into which shard, fixed before anything is written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from toto.data.index import NO_LABEL
from toto.data.manifest import Kind, SkippedFile
from toto.data.parts import LeftAlone
from toto.data.shards import MAX_SHARD_BYTES, MAX_SHARD_SAMPLES, ShardLimits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from toto.data.check import SourceFile
    from toto.data.listing import Listing

__all__ = ["PLAN_VERSION", "Entry", "FilePlan", "Item", "Plan", "make_key"]

PLAN_VERSION = 2


@dataclass(frozen=True, slots=True)
class Item:
    """A file with the key of its sample."""

    key: str
    file: SourceFile


Entry = Item | SkippedFile | LeftAlone
"""A file, one that is known to be broken, or a count of what is no sample."""


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
    def left(self) -> Mapping[str, int]:
        """What is known to be left alone before the work, counted by kind; see Listing."""

    @property
    def unit(self) -> str:
        """What `weight` counts: files or bytes."""

    def num_shards(self) -> int:
        """Shards, those included of which nothing may be left."""

    def fingerprint(self) -> str:
        """A hash of all that decides the bytes of the shards."""

    def items(self, shard: int) -> Iterator[Entry]:
        """The files of one shard, in order."""

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
    def left(self) -> Mapping[str, int]:
        """Of the listing."""
        return self.listing.left

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

    def items(self, shard: int) -> Iterator[Entry]:
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


def make_key(number: int, stem: str) -> str:
    """A WebDataset key, unique by its number: `000012_cafe_2` for sample 12, `café 2`."""
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    return f"{number:06d}_" + re.sub(r"[^A-Za-z0-9_-]", "_", plain)[:60]


def _order(file: SourceFile) -> bytes:
    return hashlib.blake2b(os.fsencode(file.origin), digest_size=16).digest()
