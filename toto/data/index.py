"""Reading a packed dataset: any sample, or frames of a token array, is one memory-mapped slice.

A dataset is a folder of `shard-00000.tar …` (standard WebDataset tars), `index.npy` (one row a
sample), `files.jsonl` (the path of each sample's original, one JSON string a line) and
`manifest.json`.
"""

from __future__ import annotations

import json
import mmap
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from toto.data.manifest import Form, Kind, Manifest, TokenInfo, read_manifest
from toto.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["INDEX_DTYPE", "NO_LABEL", "Dataset"]

INDEX_FILE = "index.npy"
ORIGINS_FILE = "files.jsonl"
NO_LABEL = -1

# `offset` is that of the payload inside its tar, just behind the member's header.
INDEX_DTYPE = np.dtype(
    [
        ("shard", "<u4"),
        ("offset", "<u8"),
        ("size", "<u8"),
        ("frames", "<u4"),
        ("label", "<i4"),
    ]
)


class Dataset:
    """A packed dataset, opened for reading. Pickles as its path, so workers open their own.

    Attributes:
        path: the folder.
        manifest: its description.
        index: `INDEX_DTYPE` rows in the order of the shards, memory-mapped.
        shard_starts: int64 S+1; samples of shard s are rows shard_starts[s] to shard_starts[s+1].
    """

    def __init__(self, path: Path, manifest: Manifest, index: npt.NDArray[np.void]) -> None:
        self.path = path
        self.manifest = manifest
        self.index = index
        counts = [shard.samples for shard in manifest.shards]
        self.shard_starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._shards: dict[int, memoryview] = {}

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Open the dataset in the folder `path`.

        Raises:
            DataError: it is missing, half-written, of an unknown version, or damaged.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        try:
            index = np.load(folder / INDEX_FILE, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{folder / INDEX_FILE}: {error}. Pack the dataset again") from error
        samples = sum(shard.samples for shard in manifest.shards)
        if index.dtype != INDEX_DTYPE or index.shape != (samples,):
            raise DataError(
                f"{folder / INDEX_FILE} does not hold the {samples} samples of the manifest. "
                "Pack the dataset again"
            )
        return cls(folder, manifest, index)

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
        """Pictures or videos."""
        return len(self.index)

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
        return int(self.index["frames"][i])

    def label(self, i: int) -> int:
        """Class of sample i, or -1."""
        return int(self.index["label"][i])

    def key(self, i: int) -> str:
        """The WebDataset key of sample i, read from its header in the tar."""
        row = self.index[i]
        header = self._shard(int(row["shard"]))[int(row["offset"]) - tarfile.BLOCKSIZE :]
        member = tarfile.TarInfo.frombuf(
            bytes(header[: tarfile.BLOCKSIZE]), "utf-8", "surrogateescape"
        )
        return member.name.split(".")[0]

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
        row = self.index[i]
        offset, size = int(row["offset"]), int(row["size"])
        payload = self._shard(int(row["shard"]))[offset : offset + size]
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

    def _shard(self, shard: int) -> memoryview:
        if shard not in self._shards:
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
            self._shards[shard] = mapped
        return self._shards[shard]
