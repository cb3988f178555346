"""Where the files of a dataset lie: one interface for a folder and for several joined."""

from __future__ import annotations

import hashlib
import json
import mmap
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from toto.data.columns import COLUMNS, Column, Columns, column_file
from toto.data.manifest import Manifest, TokenInfo, read_manifest
from toto.errors import DataError
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from toto.data.manifest import Orientation, ShardEntry

__all__ = [
    "EXCLUDED_FILE",
    "ORIGINS_FILE",
    "JoinedStore",
    "LocalStore",
    "Store",
    "excluded_lines",
    "map_shard",
    "parse_excluded",
    "read_origins",
]

ORIGINS_FILE = "files.jsonl"
EXCLUDED_FILE = "excluded.jsonl"
READ_BYTES = 2**22

Ints = npt.NDArray[np.int64]


class Store(ABC):
    """The files of one dataset, read by the number of a shard or of a sample.

    Pickles as what it takes to open it again, without what it has opened.

    Attributes:
        address: for messages.
        name: of the dataset, fit for the name of a folder.
        manifest: its description.
        excluded: int64, sorted: samples that a stream leaves out.
    """

    address: str
    name: str
    manifest: Manifest
    excluded: Ints

    @abstractmethod
    def column(self, name: str, first: int, last: int) -> Column:
        """Return a column's values for the samples first to last-1.

        Raises:
            DataError: it is missing, or its values are not those that were packed.
        """

    @abstractmethod
    def map_shard(self, shard: int) -> memoryview:
        """The bytes of a shard, memory-mapped.

        Raises:
            DataError: it is missing, or not as the manifest says.
        """

    @abstractmethod
    def open_shard(self, shard: int) -> BinaryIO:
        """Open the file of a shard.

        Raises:
            DataError: it is missing.
        """

    def unverified_shards(self) -> list[int]:
        """The shards whose content nothing has compared with their checksums."""
        return list(range(len(self.manifest.shards)))

    def shard_fault(self, shard: int, *, stop: Callable[[], bool]) -> str | None:
        """Read a whole shard, and say how it differs from the one that was packed.

        Args:
            shard: its number.
            stop: asked every 4 MB whether to give up, with None for a result.
        """
        entry = self.manifest.shards[shard]
        digest, size = hashlib.sha256(), 0
        buffer = memoryview(bytearray(READ_BYTES))
        try:
            with self.open_shard(shard) as file:
                while read := file.readinto(buffer):  # type: ignore[attr-defined]
                    if stop():
                        return None
                    digest.update(buffer[:read])
                    size += read
        except (OSError, DataError) as error:
            return str(error)
        if digest.hexdigest() == entry.sha256:
            return None
        what = (
            "its checksum differs"
            if size == entry.bytes
            else f"{size:,} bytes, and the manifest says {entry.bytes:,}"
        )
        return f"{self.address}: {entry.name} is not what was packed ({what})"

    @abstractmethod
    def origins(self) -> Iterator[str]:
        """The path of each sample's original.

        Raises:
            DataError: the list is missing, or at its end that it is not the one that was packed.
        """

    @abstractmethod
    def prefetch(self, shards: Iterable[int]) -> None:
        """Begin to bring these shards near, in this order, in place of those said before."""

    def is_dropped(self, shard: int) -> bool:
        """The file of a shard that is mapped has been removed, and only the mapping holds it."""
        return False

    def orientation(self, shard: int) -> Orientation:
        """Return how readers decode the raw samples of a shard."""
        return self.manifest.orientation


class LocalStore(Store):
    """A dataset in a folder of this machine.

    Args:
        folder: of manifest, columns and shards.

    Raises:
        DataError: it is missing, half-written, of an unknown version, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = str(folder)
        self.name = folder.resolve().name
        self.manifest = read_manifest(folder)
        samples = self.manifest.num_samples
        for name, dtype in COLUMNS.items():
            file = folder / column_file(name)
            size = file.stat().st_size if file.is_file() else 0
            if size != samples * np.dtype(dtype).itemsize:
                raise DataError(
                    f"{file} does not hold the {samples} samples of the manifest. "
                    "Pack the dataset again"
                )
        fix = "Copy the whole dataset again, or pack it again"
        self._columns = Columns(folder, self.manifest, fix)
        self._columns.verify_small()
        path = folder / EXCLUDED_FILE
        self.excluded = parse_excluded(
            path.read_bytes() if path.is_file() else b"", str(path), samples
        )

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return LocalStore, (self.folder,)

    def column(self, name: str, first: int, last: int) -> Column:
        """Read from the column's file."""
        return self._columns.read(name, first, last)

    def map_shard(self, shard: int) -> memoryview:
        """Map the file."""
        entry = self.manifest.shards[shard]
        with self.open_shard(shard) as file:
            return map_shard(file, entry, str(self.folder / entry.name))

    def open_shard(self, shard: int) -> BinaryIO:
        """Open the file in the folder."""
        path = self.folder / self.manifest.shards[shard].name
        try:
            return path.open("rb")
        except OSError as error:
            raise DataError(f"{path}: {error}. Pack the dataset again") from error

    def prefetch(self, shards: Iterable[int]) -> None:
        """Nothing: they are here, and the system reads ahead by itself."""

    def origins(self) -> Iterator[str]:
        """Read from the list beside the shards."""
        path = self.folder / ORIGINS_FILE
        return read_origins(path, self.address, self.manifest.origins_sha256)


class JoinedStore(Store):
    """Several datasets as one, in this order.

    Args:
        parts: of one kind, form, tokenizer and list of classes.

    Raises:
        DataError: they differ in one of these.
    """

    def __init__(self, parts: Sequence[Store]) -> None:
        first = parts[0]
        for part in parts[1:]:
            _require_alike(first, part)
        self.parts = tuple(parts)
        self.address = " + ".join(part.address for part in parts)
        self.name = first.name if len(parts) == 1 else f"{first.name}+{len(parts) - 1}"
        manifests = [part.manifest for part in parts]
        self.manifest = first.manifest.model_copy(
            update={
                "made_from": first.manifest.made_from if len(parts) == 1 else "",
                "checksum": None,
                "origins_sha256": None,
                "format_version": min(manifest.format_version for manifest in manifests),
                "turned": sum(m.turned for m in manifests if m.orientation == "upright"),
                "orientation": "upright"
                if any(m.orientation == "upright" for m in manifests)
                else "stored",
            }
            | {
                name: tuple(item for manifest in manifests for item in getattr(manifest, name))
                for name in ("shards", "sources", "skipped")
            }
        )
        self._shard_ends = np.cumsum([len(manifest.shards) for manifest in manifests])
        self._ends = np.cumsum([manifest.num_samples for manifest in manifests], dtype=np.int64)
        self._starts = [0, *self._ends[:-1].tolist()]
        self.excluded = np.concatenate(
            [part.excluded + start for part, start in zip(parts, self._starts, strict=True)]
        )

    def __reduce__(self) -> tuple[object, tuple[tuple[Store, ...]]]:
        return JoinedStore, (self.parts,)

    def column(self, name: str, first: int, last: int) -> Column:
        """Of every part that these samples reach into."""
        pieces = [
            part.column(name, max(first, start) - start, min(last, end) - start)
            for part, start, end in zip(self.parts, self._starts, self._ends.tolist(), strict=True)
            if first < end and last > start
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def map_shard(self, shard: int) -> memoryview:
        """Of the part that holds it."""
        part, place = self._locate(shard)
        return self.parts[part].map_shard(place)

    def open_shard(self, shard: int) -> BinaryIO:
        """Open that of the part that holds it."""
        part, place = self._locate(shard)
        return self.parts[part].open_shard(place)

    def unverified_shards(self) -> list[int]:
        """Those of all parts."""
        first = [0, *self._shard_ends[:-1].tolist()]
        return [
            start + shard
            for part, start in zip(self.parts, first, strict=True)
            for shard in part.unverified_shards()
        ]

    def origins(self) -> Iterator[str]:
        """Those of one part after the other."""
        for part in self.parts:
            yield from part.origins()

    def prefetch(self, shards: Iterable[int]) -> None:
        """Each part its own."""
        wanted: dict[int, list[int]] = {}
        for shard in shards:
            part, place = self._locate(shard)
            wanted.setdefault(part, []).append(place)
        for part, places in wanted.items():
            self.parts[part].prefetch(places)

    def is_dropped(self, shard: int) -> bool:
        """As the part that holds it says."""
        part, place = self._locate(shard)
        return self.parts[part].is_dropped(place)

    def orientation(self, shard: int) -> Orientation:
        """Return that of the part that holds the shard."""
        part, place = self._locate(shard)
        return self.parts[part].orientation(place)

    def _locate(self, shard: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._shard_ends, shard, side="right"))
        return part, shard - (int(self._shard_ends[part - 1]) if part else 0)


def map_shard(file: BinaryIO, entry: ShardEntry, path: str) -> memoryview:
    """The bytes of an open shard; the mapping outlives the file.

    Raises:
        DataError: it is not as long as the manifest says.
    """
    try:
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}. Pack the dataset again") from error
    if len(mapped) != entry.bytes:
        raise DataError(
            f"{path} has {len(mapped)} bytes, and the manifest says {entry.bytes}. "
            "Copy it again, or pack the dataset again"
        )
    return mapped


def read_origins(path: Path, address: str, sha256: str | None) -> Iterator[str]:
    """Yield the lines of a list of originals.

    Args:
        path: of the list.
        address: of the dataset, for messages.
        sha256: of the list when it was packed, compared at its end; None where it is not known.

    Raises:
        DataError: it is missing, or not what was packed.
    """
    if not path.is_file():
        raise DataError(f"{address}: {ORIGINS_FILE} is missing. Pack the dataset again")
    digest = hashlib.sha256()
    fix = "Copy the whole dataset again, or pack it again"
    with path.open("rb") as lines:
        for line in lines:
            digest.update(line)
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path} is damaged: {error}. {fix}") from error
    if sha256 is not None and digest.hexdigest() != sha256:
        raise DataError(f"{path} is not what was packed (its checksum differs). {fix}")


def excluded_lines(content: bytes) -> list[str]:
    """Return the lines of an `excluded.jsonl`, which users edit: blank lines are left out.

    Only a line feed ends a line: file names may hold U+2028, where `str.splitlines` splits.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    return [line for line in content.decode("utf-8-sig").split("\n") if line.strip()]


def parse_excluded(content: bytes, path: str, samples: int) -> Ints:
    """The samples that these lines exclude, sorted.

    Raises:
        DataError: they are damaged, or name samples that are not there.
    """
    try:
        samples_of_lines = [json.loads(line)["sample"] for line in excluded_lines(content)]
        excluded = np.unique(np.array(samples_of_lines, np.int64))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged: {error}. Remove {path}, then toto doctor --fix"
        ) from error
    if len(excluded) and not 0 <= excluded[0] <= excluded[-1] < samples:
        raise DataError(
            f"{path} names samples that are not there. Remove {path}, then toto doctor --fix"
        )
    return excluded


def _require_alike(first: Store, other: Store) -> None:
    """What decides what a sample of them means must be equal."""
    for field in ("kind", "form", "classes", "tokens"):
        if _meaning(first.manifest, field) != _meaning(other.manifest, field):
            raise DataError(
                f"{first.address} and {other.address} cannot be one source: their {field} differ "
                f"({_shown(first.manifest, field)} and {_shown(other.manifest, field)}). "
                "Pack or tokenize them alike, or make two sources of them"
            )


def _meaning(manifest: Manifest, field: str) -> object:
    """Of tokens without the tokenizer's config, of which the fingerprint is the identity."""
    value = getattr(manifest, field)
    return value.identity(exclude={"tokenizer"}) if isinstance(value, TokenInfo) else value


def _shown(manifest: Manifest, field: str) -> str:
    value = getattr(manifest, field)
    if field == "classes":
        return number_of(len(value), "class", "classes")
    if field == "tokens" and value is not None:
        return f"tokenizer {value.fingerprint[:12]} at {value.resolution} px"
    return str(value)
