"""Reading a packed dataset: any sample, or frames of a token array, is one memory-mapped slice.

A dataset is a folder of `shard-00000.tar …` (standard WebDataset tars), four columns of the index
with an entry a sample (`offset.u64`, `size.u64`, `frames.u32`, `label.i32`, little-endian, in the
order of the shards), `files.jsonl` (the path of each sample's original, one JSON string a line),
`manifest.json` and, where `toto doctor --fix` wrote one, `excluded.jsonl`.

Every read of a sample goes through `Dataset.read`, `read_codes` or `key`. What is wrong with that
sample alone is an UndecodableError, which a stream replaces; what is wrong with the index or with a
whole shard is a DataError.

Columns are read shard by shard, and the last few shards are kept: a dataset of 10^8 samples opens
as fast as one of ten, and no process holds its index.
"""

from __future__ import annotations

import hashlib
import tarfile
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from toto.data.addresses import is_remote
from toto.data.cache import CachedStore
from toto.data.columns import COLUMNS, column_file
from toto.data.config import CacheConfig
from toto.data.store import EXCLUDED_FILE, ORIGINS_FILE, JoinedStore, LocalStore, Store
from toto.errors import DataError, UndecodableError
from toto.tokenizers.config import TOKENIZERS
from toto.wording import number_of

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from toto.data.manifest import Form, Kind, Manifest, Orientation, TokenInfo

__all__ = [
    "COLUMNS",
    "EXCLUDED_FILE",
    "NO_LABEL",
    "ORIGINS_FILE",
    "Dataset",
    "TarRow",
    "column_file",
]

NO_LABEL = -1
# Reads stay within the windows of the order, 16 shards a source.
KEPT_SHARDS = 48
HEADER_LIMIT = 8 * 2**30


@dataclass(frozen=True)
class TarRow:
    """What the index says of a sample that its tar says too; see COLUMNS."""

    offset: int
    size: int
    label: int


@dataclass(frozen=True)
class _Shard:
    """One shard, open: its bytes and the columns of its samples."""

    content: memoryview
    offsets: npt.NDArray[np.integer[Any]]
    sizes: npt.NDArray[np.integer[Any]]
    frames: npt.NDArray[np.integer[Any]]
    mapped: mmap.mmap

    def header(self, place: int) -> tarfile.TarInfo:
        """Return the header of a sample's member in the tar.

        Raises:
            UndecodableError: it is damaged, or was cut off.
        """
        end = int(self.offsets[place])
        self.require(end)
        header = bytes(self.content[end - tarfile.BLOCKSIZE : end])
        try:
            return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise UndecodableError(f"its header in the tar is damaged ({error})") from error

    def require(self, end: int) -> None:
        """Raise where the shard no longer reaches to byte `end`: reading there would be SIGBUS.

        One system call, 0.3 µs. A file that is cut between this and the read still ends the
        process; so does a disk that fails under a mapping.

        Raises:
            UndecodableError: the file was cut after it was mapped.
        """
        size = self.mapped.size()
        if size < end:
            raise UndecodableError(f"its shard was cut to {size:,} bytes after it was opened")


class Dataset:
    """A packed dataset, opened for reading. Pickles as where it lies; workers open their own.

    Args:
        store: its files.

    Attributes:
        path: where it lies, for messages: a folder, an address, or several joined by ` + `.
        manifest: its description.
        shard_starts: int64 S+1; samples of shard s are shard_starts[s] to shard_starts[s+1].
        excluded: int64, sorted: samples that a stream leaves out.
    """

    def __init__(self, store: Store) -> None:
        self.path = store.address
        self.manifest: Manifest = store.manifest
        self.excluded = store.excluded
        counts = [shard.samples for shard in store.manifest.shards]
        self.shard_starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._starts = self.shard_starts.tolist()
        self._store = store
        self._shards: dict[int, _Shard] = {}

    @classmethod
    def open(cls, path: str | Path, cache: CacheConfig | None = None) -> Dataset:
        """Open the dataset in the folder or at the address `path`.

        Args:
            path: a folder, or an address with a scheme, such as `s3://bucket/dataset`.
            cache: of remote shards; the default one where this is None.

        Raises:
            DataError: it is missing, half-written, of an unknown version, or damaged.
        """
        if is_remote(path):
            return cls(CachedStore(str(path), cache or CacheConfig()))
        return cls(LocalStore(Path(path)))

    @classmethod
    def join(cls, datasets: Sequence[Dataset]) -> Dataset:
        """Several datasets as one, in this order.

        Raises:
            DataError: they differ in kind, form, classes or tokenizer.
        """
        return cls(JoinedStore([dataset._store for dataset in datasets]))

    def __reduce__(self) -> tuple[object, tuple[Store]]:
        return Dataset, (self._store,)

    @property
    def folder(self) -> Path:
        """The folder, where the dataset is one on this machine, for what writes into it.

        Raises:
            DataError: it is remote, or several.
        """
        if not isinstance(self._store, LocalStore):
            raise DataError(f"{self.path} is no single folder of this machine. Give such a folder")
        return self._store.folder

    @property
    def name(self) -> str:
        """The folder's name; for joined ones, the first's and how many more."""
        return self._store.name

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

    def fingerprint(self) -> str:
        """A hash of what a stream reads: the samples, and which of them are excluded."""
        content = self.manifest.fingerprint().encode() + self.excluded.tobytes()
        return hashlib.sha256(content).hexdigest()

    def kept(self) -> npt.NDArray[np.int64]:
        """The samples that are not excluded, in order; for small datasets, of evaluations."""
        return np.setdiff1d(np.arange(self.num_samples), self.excluded, assume_unique=True)

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
        return int(self._store.column("frames", i, i + 1)[0])

    def frame_counts(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Frames of the samples first to last-1; 1 for pictures."""
        if self.kind == "images":
            return np.ones(last - first, dtype=np.int64)
        return self._store.column("frames", first, last).astype(np.int64)

    def orientation(self, i: int) -> Orientation:
        """Return whether sample i of raw shards is decoded upright or as it is stored."""
        return self._store.orientation(self.shard_of(i))

    def label(self, i: int) -> int:
        """Class of sample i, or -1."""
        return int(self._store.column("label", i, i + 1)[0]) if self.classes else NO_LABEL

    def labels(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Classes of the samples first to last-1, -1 without one."""
        return self._store.column("label", first, last).astype(np.int64)

    def rows(self, first: int, last: int) -> list[TarRow]:
        """Return what the index says of the samples first to last-1 that a tar can confirm."""
        columns = (self._store.column(name, first, last) for name in ("offset", "size", "label"))
        return [TarRow(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def shard_of(self, i: int) -> int:
        """The number of the shard that holds sample i."""
        return bisect_right(self._starts, i) - 1

    def key(self, i: int) -> str:
        """Return the WebDataset key of sample i, read from its header in the tar.

        Raises:
            UndecodableError: the header is damaged.
            DataError: as `read`.
        """
        shard, place = self._locate(i)
        return shard.header(place).name.split(".")[0]

    def name_of(self, i: int) -> str:
        """Return the key of sample i, or its number where the key cannot be read; for messages."""
        try:
            return self.key(i)
        except DataError:
            return f"sample {i}"

    def origins(self) -> Iterator[str]:
        """The path of each sample's original file, relative to the folder that was packed.

        Raises:
            DataError: the list is missing.
        """
        return self._store.origins()

    def origin(self, i: int) -> str:
        """The path of one original; reads the list up to there, so for messages only."""
        for number, origin in enumerate(self.origins()):
            if number == i:
                return origin
        raise DataError(f"{self.path}: {ORIGINS_FILE} ends before sample {i}. Pack it again")

    def read(self, i: int) -> memoryview:
        """The bytes of sample i: the encoded file, or the .npy of its tokens. Nothing is copied.

        Raises:
            UndecodableError: the shard was cut after it was opened.
            DataError: the shard is missing, not as long as it was when packed, or does not hold
                what the index says.
        """
        shard, place = self._locate(i)
        offset, size = int(shard.offsets[place]), int(shard.sizes[place])
        shard.require(offset + size)
        return shard.content[offset : offset + size]

    def read_codes(self, i: int, start: int, count: int, stride: int) -> npt.NDArray[np.uint16]:
        """Return frames start, start+stride, … of a token sample: `[count, H, W]`, without a copy.

        Raises:
            UndecodableError: the shard was cut after it was opened, or the codes are none of the
                tokenizer's.
            DataError: raw shards, the sample has no such frames, or as `read`.
        """
        height, width = self.tokens.grid
        shard, place = self._locate(i)
        frames, size = shard.frames.item(place), shard.sizes.item(place)
        end = start + (count - 1) * stride + 1
        if start < 0 or end > frames:
            raise DataError(
                f"{self.path}: sample {i} has {number_of(frames, 'frame')}, not {start} to {end}"
            )
        # The array is the end of an .npy file; the index knows its shape, so the header is not
        # parsed again for each clip.
        codes = frames * height * width
        begin = shard.offsets.item(place) + size - 2 * codes
        shard.require(begin + 2 * codes)
        flat = np.frombuffer(shard.content, dtype="<u2", count=codes, offset=begin)
        codes_THW = flat.reshape(frames, height, width)[start:end:stride]
        # Half the time of `codes_THW.max()`, for each clip that is read.
        largest = np.maximum.reduce(codes_THW, axis=None)
        if largest >= self._codebook_size:
            raise UndecodableError(
                f"it holds the code {largest}, and its tokenizer has codes from 0 to "
                f"{self._codebook_size - 1}. Tokenize it again"
            )
        return codes_THW

    @cached_property
    def _codebook_size(self) -> int:
        """How many codes the tokenizer has; as many as uint16 holds where it is not known here."""
        try:
            config = TOKENIZERS.parse(self.tokens.tokenizer)
        except ValueError:  # a plug-in that is not imported; its user checks the rest
            return 2**16
        return config.codebook_size

    def _locate(self, i: int) -> tuple[_Shard, int]:
        number = self.shard_of(i)
        shard = self._shards.get(number)
        if shard is None:
            first, last = self._starts[number : number + 2]
            content = self._store.map_shard(number)
            shard = _Shard(
                content,
                self._store.column("offset", first, last),
                self._store.column("size", first, last),
                self.frame_counts(first, last),
                cast("mmap.mmap", content.obj),
            )
            self._require_index_of(number, shard)
            self._shards[number] = shard
            self._forget_shards()
        return shard, i - self._starts[number]

    def _require_index_of(self, number: int, shard: _Shard) -> None:
        """Refuse a shard and an index that contradict each other.

        Raises:
            DataError: a sample ends behind the shard, codes are more than their file, or the last
                sample is not where the index says, which shows a mix-up of two packings.
        """
        bytes_of_codes = np.zeros(1, np.uint64)
        if self.form == "tokens":
            height, width = self.tokens.grid
            bytes_of_codes = shard.frames.astype(np.uint64) * (2 * height * width)
        outside = shard.offsets + shard.sizes > len(shard.content)
        fits = not (outside | (bytes_of_codes > shard.sizes)).any()
        try:
            # The header of a larger file has no room for its size: that stands in one before it.
            size = int(shard.sizes[-1])
            found = shard.header(-1).size == (size if size < HEADER_LIMIT else 0)
        except UndecodableError:
            found = False
        if not (found and fits):
            raise DataError(
                f"{self.path}: {self.manifest.shards[number].name} and the index beside it are of "
                "different packings. Copy the whole dataset again, or pack it again"
            )

    def _forget_shards(self) -> None:
        """Unmap what was opened first, and what a cache has removed, whose space it counts on."""
        for number in [kept for kept in self._shards if self._store.is_dropped(kept)]:
            del self._shards[number]
        while len(self._shards) > KEPT_SHARDS:
            del self._shards[next(iter(self._shards))]

    def unverified_shards(self) -> list[int]:
        """The shards whose content nothing has compared with their checksums: of this machine."""
        return self._store.unverified_shards()

    def shard_fault(self, shard: int, *, stop: Callable[[], bool] = lambda: False) -> str | None:
        """Read a whole shard, and say how it differs from the one that was packed, or None.

        Args:
            shard: its number.
            stop: asked every 4 MB whether to give up, with None for a result.
        """
        return self._store.shard_fault(shard, stop=stop)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Say which shards will be read soon, in this order: remote ones are fetched meanwhile."""
        self._store.prefetch(shards)
