"""Writing a dataset sample by sample, in one process, published when whole."""

from __future__ import annotations

import re
import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING

from toto.data.index import NO_LABEL
from toto.data.parts import Description, PartWriter, Sample, make_working_folder, publish
from toto.data.tar import tar_size
from toto.errors import DataError
from toto.files import PARTIAL, disk_errors, resumed_folder, sole_writer

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from toto.data.manifest import Form, Kind, TokenInfo

__all__ = ["MAX_SHARD_BYTES", "MAX_SHARD_SAMPLES", "DatasetWriter", "ShardLimits"]

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")
MAX_SHARD_BYTES = 256 * 2**20
MAX_SHARD_SAMPLES = 10_000


class ShardLimits:
    """Where one shard ends and the next begins: before the sample that would make it too large."""

    def __init__(
        self, max_bytes: int = MAX_SHARD_BYTES, max_samples: int = MAX_SHARD_SAMPLES
    ) -> None:
        self._max_bytes = max_bytes
        self._max_samples = max_samples
        self._bytes = 0
        self._samples = 0

    def starts_shard(self, size: int, *, labelled: bool) -> bool:
        """Count one more sample; whether it is the first of another shard (not of the first)."""
        full = self._samples > 0 and (
            self._samples >= self._max_samples or self._bytes + size > self._max_bytes
        )
        if full:
            self._bytes = self._samples = 0
        self._samples += 1
        self._bytes += tar_size(size) + (tar_size(1) if labelled else 0)
        return full


class DatasetWriter:
    """Writes samples into a hidden folder next to `out`, which gets its name when all is well.

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
        UserError: another process writes `out`.
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
        self.num_samples = 0
        self._out = out
        self._partial = out.with_name(f".{out.name}{PARTIAL}")
        self._held = ExitStack()
        self._description = Description(kind, form, classes, tokens, sources)
        self._limits = ShardLimits(max_shard_bytes, max_shard_samples)
        self._shards = 0
        self._part: PartWriter | None = None

    def __enter__(self) -> DatasetWriter:
        with ExitStack() as held:
            held.enter_context(sole_writer(self._out))
            with disk_errors(self._out):
                if resumed_folder(self._partial):  # of a process that was killed
                    shutil.rmtree(self._partial)
                make_working_folder(self._partial)
            self._held = held.pop_all()
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
        """Append one sample; see Sample.

        Raises:
            ValueError: the key has other characters, which WebDataset readers would misread.
            RunError: the disk is full or refuses.
        """
        if not KEY_PATTERN.fullmatch(key):
            raise ValueError(f"key {key!r} does not match {KEY_PATTERN.pattern}")
        with disk_errors(self._out):
            if self._limits.starts_shard(len(payload), labelled=label != NO_LABEL):
                self._close_shard()
            if self._part is None:
                self._part = PartWriter(self._partial, self._shards)
            self._part.add(Sample(key, extension, payload, origin, frames, label))
        self.num_samples += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                with disk_errors(self._out):
                    self._close_shard()
                    publish(self._partial, self._shards, self._out, self._description)
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._held.close()

    def _close_shard(self) -> None:
        if self._part is not None:
            self._part.finish()
            self._shards += 1
            self._part = None
