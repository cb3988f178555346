"""The columns of a dataset's index: their files, checksums, and the values that they may hold.

A wrong label or number of frames would be silent, so every value is verified before it is used:
each shard's part of a column when a process first reads it. Reading the whole part of a shard of
10^4 samples costs 80 KB and a tenth of a millisecond, once.
"""

from __future__ import annotations

import hashlib
import tarfile
from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from toto.errors import DataError
from toto.wording import number_of

if TYPE_CHECKING:
    from pathlib import Path

    from toto.data.manifest import Manifest

__all__ = [
    "COLUMNS",
    "Column",
    "Columns",
    "column_checksum",
    "column_file",
    "verify_column_file",
]

COLUMNS: dict[str, str] = {"offset": "<u8", "size": "<u8", "frames": "<u4", "label": "<i4"}
"""Name and dtype. `offset` is that of the payload in its tar, just behind the member's header."""

SMALL = 10**6
"""Datasets of at most so many samples are verified whole when they are opened: 24 MB, 50 ms."""

Column = npt.NDArray[np.integer[Any]]


def column_file(name: str) -> str:
    """Return the name of a column's file, such as `offset.u64`."""
    kind, size = COLUMNS[name][1], int(COLUMNS[name][2])
    return f"{name}.{kind}{size * 8}"


def column_checksum(values: Column) -> str:
    """Return 64 bits of BLAKE2b of a shard's part of a column, in hexadecimal."""
    return hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=8).hexdigest()


class Columns:
    """The columns in a folder, verified as they are read.

    Args:
        folder: of the columns' files.
        manifest: of the dataset.
        fix: a sentence that ends messages about damage.
    """

    def __init__(self, folder: Path, manifest: Manifest, fix: str) -> None:
        self._folder = folder
        self._manifest = manifest
        self._fix = fix
        self._starts = [0, *accumulate(shard.samples for shard in manifest.shards)]
        self._verified = {name: np.zeros(len(manifest.shards), bool) for name in COLUMNS}

    def read(self, name: str, first: int, last: int) -> Column:
        """Return a column's values for the samples first to last-1.

        Raises:
            DataError: the file is missing or short, or its values are not those that were packed.
        """
        path = self._folder / column_file(name)
        low, high = bisect_right(self._starts, first) - 1, bisect_left(self._starts, last)
        verified = self._verified[name]
        if verified[low:high].all():
            return _read(path, name, first, last, self._fix)
        begin = self._starts[low]
        values = _read(path, name, begin, self._starts[high], self._fix)
        for shard in range(low, high):
            if not verified[shard]:
                part = values[self._starts[shard] - begin : self._starts[shard + 1] - begin]
                self._verify(path, name, shard, part)
                verified[shard] = True
        return values[first - begin : last - begin]

    def verify_small(self) -> None:
        """Verify all columns now if the dataset is small, so that a fault is found at once.

        Raises:
            DataError: as `read`.
        """
        if self._starts[-1] <= SMALL:
            for name in COLUMNS:
                self.read(name, 0, self._starts[-1])

    def _verify(self, path: Path, name: str, shard: int, values: Column) -> None:
        fault = _fault(self._manifest, name, shard, self._starts[shard], values)
        if fault is not None:
            raise DataError(f"{path}: {fault}. {self._fix}")


def verify_column_file(path: Path, name: str, manifest: Manifest) -> str | None:
    """Return what is wrong with a column's file; None where it holds what was packed.

    Args:
        path: a file of the right size, whatever its name.
        name: of the column.
        manifest: of the dataset.
    """
    first = 0
    for number, shard in enumerate(manifest.shards):
        values = _read(path, name, first, first + shard.samples, "")
        fault = _fault(manifest, name, number, first, values)
        if fault is not None:
            return fault
        first += shard.samples
    return None


def _read(path: Path, name: str, first: int, last: int, fix: str) -> Column:
    dtype: np.dtype[np.integer[Any]] = np.dtype(COLUMNS[name])
    try:
        values = np.fromfile(path, dtype, count=last - first, offset=first * dtype.itemsize)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. {fix}") from error
    if len(values) != last - first:
        raise DataError(f"{path} ends before sample {last - 1}. {fix}")
    return values


def _fault(manifest: Manifest, name: str, shard: int, first: int, values: Column) -> str | None:
    """Say what is wrong with a shard's part of a column, whose first sample is `first`."""
    entry = manifest.shards[shard]
    if entry.columns is not None and column_checksum(values) != entry.columns[name]:
        return f"the part of {entry.name} is not what was packed (its checksum differs)"
    bad = np.flatnonzero(~_possible(manifest, name, shard, values))
    if not len(bad):
        return None
    bounds = {
        "offset": f"the offsets in a tar of {entry.bytes:,} bytes are smaller multiples of 512",
        "size": f"{entry.name} has {entry.bytes:,} bytes",
        "frames": "a sample has at least one frame",
        "label": f"the dataset has {number_of(len(manifest.classes), 'class', 'classes')}",
    }
    sample = int(bad[0])
    return f"{name} {int(values[sample]):,} of sample {first + sample}, and {bounds[name]}"


def _possible(manifest: Manifest, name: str, shard: int, values: Column) -> npt.NDArray[np.bool_]:
    size = manifest.shards[shard].bytes
    if name == "offset":
        block = tarfile.BLOCKSIZE
        return np.asarray((values >= block) & (values <= size) & (values % block == 0))
    if name == "size":
        return np.asarray(values <= size)
    if name == "frames":
        return np.asarray(values >= 1)
    # Without names the numbers of classes are not known.
    return np.asarray((values >= -1) & (values < (len(manifest.classes) or np.inf)))
