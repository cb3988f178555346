"""Writing a dataset: standard WebDataset tars, deterministic to the byte, published when whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tarfile
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt
import webdataset

from toto.data.index import COLUMNS, NO_LABEL, ORIGINS_FILE, column_file
from toto.data.manifest import (
    MANIFEST_FILE,
    Form,
    Kind,
    Manifest,
    ShardEntry,
    SkippedFile,
    TokenInfo,
)
from toto.errors import DataError
from toto.files import disk_errors

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

__all__ = ["DatasetWriter"]

Rows = npt.NDArray[np.void]
"""One row a sample, with the fields of COLUMNS."""

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")
MAX_SHARD_BYTES = 256 * 2**20
MAX_SHARD_SAMPLES = 10_000


class DatasetWriter:
    """Writes samples into a hidden folder beside `out`, which gets its name when all is well.

    A context manager: leaving it normally publishes the dataset by one rename, leaving it by an
    exception removes what was written. The same samples in the same order give the same bytes.

    Args:
        out: the dataset's folder; must not exist yet.
        kind: of the samples.
        form: of the samples.
        classes: names of the labels.
        tokens: what the codes mean, for token shards.
        sources: originals that the samples were made of, for telling splits apart.
        max_shard_bytes: a shard is closed before the sample that would exceed it.
        max_shard_samples: likewise.

    Raises:
        DataError: `out` exists, or nothing was added.
    """

    def __init__(
        self,
        out: Path,
        *,
        kind: Kind,
        form: Form,
        classes: tuple[str, ...] = (),
        tokens: TokenInfo | None = None,
        sources: tuple[str, ...] = (),
        max_shard_bytes: int = MAX_SHARD_BYTES,
        max_shard_samples: int = MAX_SHARD_SAMPLES,
    ) -> None:
        if out.exists():
            raise DataError(f"{out} exists already. Remove it, or choose another folder")
        self.skipped: list[SkippedFile] = []
        self.num_samples = 0
        self.num_frames = 0
        self.num_bytes = 0
        self._out = out
        self._partial = out.parent / f".{out.name}.{os.getpid()}.partial"
        self._kind: Kind = kind
        self._form: Form = form
        self._classes = classes
        self._tokens = tokens
        self._sources = sources
        self._max_bytes = max_shard_bytes
        self._max_samples = max_shard_samples
        self._shards: list[ShardEntry] = []
        self._rows: list[Rows] = []
        self._shard: _Shard | None = None

    def __enter__(self) -> DatasetWriter:
        with disk_errors(self._out):
            self._partial.mkdir(parents=True)
            self._origins = (self._partial / ORIGINS_FILE).open("w", encoding="utf-8")
        return self

    def add(
        self,
        key: str,
        extension: str,
        payload: bytes,
        *,
        origin: str,
        frames: int = 1,
        label: int = NO_LABEL,
    ) -> None:
        """Append one sample.

        Args:
            key: unique in the dataset; letters, digits, `_` and `-`, at most 80 of them.
            extension: of the payload, without its dot: jpg, mp4, npy.
            payload: the encoded file, as it is.
            origin: where the payload came from, for messages.
            frames: number of frames; 1 for a picture.
            label: class, or -1.

        Raises:
            ValueError: the key has other characters, which WebDataset readers would misread.
            RunError: the disk is full or refuses.
        """
        if not KEY_PATTERN.fullmatch(key):
            raise ValueError(f"key {key!r} does not match {KEY_PATTERN.pattern}")
        with disk_errors(self._out):
            if self._shard is not None and self._shard.is_full(
                len(payload), self._max_bytes, self._max_samples
            ):
                self._close_shard()
            if self._shard is None:
                self._shard = _Shard(self._partial, len(self._shards))
            self._shard.add(key, extension, payload, frames, label)
            self._origins.write(json.dumps(origin) + "\n")
        self.num_samples += 1
        self.num_frames += frames
        self.num_bytes += len(payload)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with disk_errors(self._out):
                self._close_shard()
                self._origins.close()
                if error is None:
                    self._publish()
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)

    def _close_shard(self) -> None:
        if self._shard is not None:
            entry, rows = self._shard.close()
            self._shards.append(entry)
            self._rows.append(rows)
            self._shard = None

    def _publish(self) -> None:
        if not self._shards:
            raise DataError(f"{self._out}: there is no sample to pack")
        for column in COLUMNS:
            with (self._partial / column_file(column)).open("wb") as file:
                for rows in self._rows:
                    rows[column].tofile(file)
        manifest = Manifest(
            kind=self._kind,
            form=self._form,
            shards=tuple(self._shards),
            classes=self._classes,
            tokens=self._tokens,
            sources=self._sources,
            skipped=tuple(self.skipped),
        )
        text = manifest.model_dump_json(indent=1)
        (self._partial / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
        self._partial.rename(self._out)

    @property
    def num_shards(self) -> int:
        """Shards that are closed."""
        return len(self._shards)


class _HashedFile:
    """A file for writing that counts and hashes what passes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)


class _Shard:
    """One tar under way."""

    def __init__(self, folder: Path, number: int) -> None:
        self._name = f"shard-{number:05d}.tar"
        self._file = (folder / self._name).open("wb")
        self._hashed = _HashedFile(self._file)
        # Fixed time and owner: equal samples give equal bytes. GNU tar has no limit on sizes.
        self._tar = webdataset.TarWriter(
            self._hashed,
            user="",
            group="",
            mtime=0,
            encoder=False,
            compress=False,
            format="GNU_FORMAT",
        )
        self._rows: list[tuple[int, int, int, int]] = []
        self._offset = 0

    def is_full(self, size: int, max_bytes: int, max_samples: int) -> bool:
        return len(self._rows) >= max_samples or self._offset + size > max_bytes

    def add(self, key: str, extension: str, payload: bytes, frames: int, label: int) -> None:
        members = {extension: payload}
        if label != NO_LABEL:
            members["cls"] = str(label).encode()
        self._tar.write({"__key__": key, **members})
        for name in sorted(members):  # the order in which TarWriter writes them
            self._offset += tarfile.BLOCKSIZE
            if name == extension:
                self._rows.append((self._offset, len(payload), frames, label))
            self._offset += -(-len(members[name]) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

    def close(self) -> tuple[ShardEntry, Rows]:
        self._tar.close()
        self._file.close()
        entry = ShardEntry(
            name=self._name,
            samples=len(self._rows),
            bytes=self._hashed.size,
            sha256=self._hashed.digest.hexdigest(),
        )
        return entry, np.array(self._rows, dtype=list(COLUMNS.items()))
