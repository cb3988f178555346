"""Reading a packed dataset: any sample, or frames of a token array, is one memory-mapped slice.

A dataset is a folder of `shard-00000.tar …` (standard WebDataset tars), four columns of the index
with an entry a sample (`offset.u64`, `size.u64`, `frames.u32`, `label.i32`, little-endian, in the
order of the shards), `files.jsonl` (the path of each sample's original, one JSON string a line),
`manifest.json` and, where `toto doctor --fix` wrote one, `excluded.jsonl`.

Columns are read shard by shard, and the last few shards are kept: a dataset of 10^8 samples opens
as fast as one of ten, and no process holds its index.
"""

from __future__ import annotations

import json
import mmap
import tarfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from toto.data.manifest import Form, Kind, Manifest, TokenInfo, read_manifest
from toto.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["COLUMNS", "EXCLUDED_FILE", "NO_LABEL", "ORIGINS_FILE", "Dataset", "column_file"]

COLUMNS: dict[str, str] = {"offset": "<u8", "size": "<u8", "frames": "<u4", "label": "<i4"}
"""Name and dtype. `offset` is that of the payload inside its tar, just behind the member's header."""
ORIGINS_FILE = "files.jsonl"
EXCLUDED_FILE = "excluded.jsonl"
NO_LABEL = -1
# Reads stay within the windows of the order, 16 shards a source.
KEPT_SHARDS = 48


def column_file(name: str) -> str:
    """The file of a column, such as `offset.u64`."""
    kind, size = COLUMNS[name][1], int(COLUMNS[name][2])
    return f"{name}.{kind}{size * 8}"


@dataclass(frozen=True)
class _Shard:
    """One shard, open: its bytes and the columns of its samples."""

    content: memoryview
    offsets: npt.NDArray[np.integer[Any]]
    sizes: npt.NDArray[np.integer[Any]]


class Dataset:
    """A packed dataset, opened for reading. Pickles as its path, so workers open their own.

    Attributes:
        path: the folder.
        manifest: its description.
        shard_starts: int64 S+1; samples of shard s are shard_starts[s] to shard_starts[s+1].
        excluded: int64, sorted: samples that a stream leaves out.
    """

    def __init__(self, path: Path, manifest: Manifest, excluded: npt.NDArray[np.int64]) -> None:
        self.path = path
        self.manifest = manifest
        self.excluded = excluded
        counts = [shard.samples for shard in manifest.shards]
        self.shard_starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._shards: OrderedDict[int, _Shard] = OrderedDict()

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Open the dataset in the folder `path`.

        Raises:
            DataError: it is missing, half-written, of an unknown version, or damaged.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        samples = sum(shard.samples for shard in manifest.shards)
        for name, dtype in COLUMNS.items():
            file = folder / column_file(name)
            size = file.stat().st_size if file.is_file() else 0
            if size != samples * np.dtype(dtype).itemsize:
                raise DataError(
                    f"{file} does not hold the {samples} samples of the manifest. "
                    "Pack the dataset again"
                )
        return cls(folder, manifest, _read_excluded(folder, samples))

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Dataset.open, (self.path,)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def kind(self) -> Kind:
        """`images` or `videos`."""
        return self.manifest.kind

    @property
    def form(self) -> Form:
        """`raw` (encoded files) or `tokens`."""
        return self.manifest.form

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each label; empty without labels."""
        return self.manifest.classes

    @property
    def num_samples(self) -> int:
        """Pictures or videos, the excluded ones too."""
        return int(self.shard_starts[-1])

    @property
    def tokens(self) -> TokenInfo:
        """What the codes mean.

        Raises:
            DataError: these are raw shards.
        """
        if self.manifest.tokens is None:
            raise DataError(
                f"{self.path} holds no tokens. Make them: toto tokenize {self.path} OUT"
            )
        return self.manifest.tokens

    def frames(self, i: int) -> int:
        """Frames of sample i; 1 for a picture."""
        return int(self._column("frames", i, i + 1)[0])

    def frame_counts(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Frames of the samples first to last-1; 1 for pictures."""
        if self.kind == "images":
            return np.ones(last - first, dtype=np.int64)
        return self._column("frames", first, last).astype(np.int64)

    def label(self, i: int) -> int:
        """Class of sample i, or -1."""
        return int(self._column("label", i, i + 1)[0]) if self.classes else NO_LABEL

    def labels(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Classes of the samples first to last-1, -1 without one."""
        return self._column("label", first, last).astype(np.int64)

    def shard_of(self, i: int) -> int:
        """The number of the shard that holds sample i."""
        return int(np.searchsorted(self.shard_starts, i, side="right")) - 1

    def key(self, i: int) -> str:
        """The WebDataset key of sample i, read from its header in the tar."""
        shard, place = self._locate(i)
        start = int(shard.offsets[place]) - tarfile.BLOCKSIZE
        header = bytes(shard.content[start : start + tarfile.BLOCKSIZE])
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name.split(".")[0]

    def origins(self) -> Iterator[str]:
        """The path of each sample's original file, relative to the folder that was packed.

        Raises:
            DataError: the list is missing.
        """
        path = self.path / ORIGINS_FILE
        if not path.is_file():
            raise DataError(f"{path} is missing. Pack the dataset again")
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)

    def origin(self, i: int) -> str:
        """The path of one original; reads the list up to there, so for messages only."""
        for number, origin in enumerate(self.origins()):
            if number == i:
                return origin
        raise DataError(f"{self.path / ORIGINS_FILE} ends before sample {i}. Pack it again")

    def read(self, i: int) -> memoryview:
        """The bytes of sample i: the encoded file, or the .npy of its tokens. Nothing is copied.

        Raises:
            DataError: the shard is missing or not as long as it was when packed.
        """
        shard, place = self._locate(i)
        offset, size = int(shard.offsets[place]), int(shard.sizes[place])
        payload = shard.content[offset : offset + size]
        if len(payload) != size:
            raise DataError(f"{self.path}: sample {i} ends behind its shard. Pack it again")
        return payload

    def read_codes(self, i: int, start: int, count: int, stride: int) -> npt.NDArray[np.uint16]:
        """Frames start, start+stride, … of a token sample: `[count, H, W]`, one slice, no copy.

        Raises:
            DataError: raw shards, or the sample has no such frames.
        """
        height, width = self.tokens.grid
        frames = self.frames(i)
        end = start + (count - 1) * stride + 1
        if start < 0 or end > frames:
            raise DataError(f"{self.path}: sample {i} has {frames} frames, not {start} to {end}")
        payload = self.read(i)
        # The array is the end of an .npy file; the index knows its shape, so the header is not
        # parsed again for each clip.
        header = len(payload) - frames * height * width * 2
        codes = np.frombuffer(payload, dtype="<u2", offset=header)
        return codes.reshape(frames, height, width)[start:end:stride]

    def _locate(self, i: int) -> tuple[_Shard, int]:
        number = self.shard_of(i)
        shard = self._shards.get(number)
        if shard is None:
            first, last = self.shard_starts[number : number + 2].tolist()
            shard = self._shards[number] = _Shard(
                self._map(number),
                self._column("offset", first, last),
                self._column("size", first, last),
            )
            if len(self._shards) > KEPT_SHARDS:
                self._shards.popitem(last=False)
        else:
            self._shards.move_to_end(number)
        return shard, i - int(self.shard_starts[number])

    def _column(self, name: str, first: int, last: int) -> npt.NDArray[np.integer[Any]]:
        dtype: np.dtype[np.integer[Any]] = np.dtype(COLUMNS[name])
        return np.fromfile(
            self.path / column_file(name), dtype, count=last - first, offset=first * dtype.itemsize
        )

    def _map(self, shard: int) -> memoryview:
        entry = self.manifest.shards[shard]
        path = self.path / entry.name
        try:
            with path.open("rb") as file:
                mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: {error}. Pack the dataset again") from error
        if len(mapped) != entry.bytes:
            raise DataError(
                f"{path} has {len(mapped)} bytes, and the manifest says {entry.bytes}. "
                "Copy it again, or pack the dataset again"
            )
        return mapped


def _read_excluded(folder: Path, samples: int) -> npt.NDArray[np.int64]:
    path = folder / EXCLUDED_FILE
    if not path.is_file():
        return np.empty(0, dtype=np.int64)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        excluded = np.unique(np.array([json.loads(line)["sample"] for line in lines], np.int64))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}. Remove it: toto doctor --fix") from error
    if len(excluded) and not 0 <= excluded[0] <= excluded[-1] < samples:
        raise DataError(f"{path} names samples that are not there. Write it anew: toto doctor --fix")
    return excluded
