"""Remote datasets, read from a bounded folder of this machine that their shards are fetched into.

Each has a sub-folder there, named by the sha256 of its manifest: a dataset that was packed anew is
another one. Manifest and columns are fetched once and kept; shards come and go.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from toto.data.cache_folder import CacheFolder
from toto.data.columns import COLUMNS, Column, Columns, column_file, verify_column_file
from toto.data.fetch import Remote, TooLongError
from toto.data.manifest import MANIFEST_FILE, parse_manifest
from toto.data.order import WINDOW_SHARDS
from toto.data.readahead import ReadAhead
from toto.data.store import (
    EXCLUDED_FILE,
    ORIGINS_FILE,
    Ints,
    Store,
    map_shard,
    parse_excluded,
    read_origins,
)
from toto.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from toto.data.config import CacheConfig
    from toto.data.manifest import Manifest

__all__ = ["CachedStore"]

logger = logging.getLogger(__name__)

UNSIZED_BYTES = 2**30
"""A manifest, list of exclusions or list of originals may have so many bytes at most.

The list of originals of 10^7 files is the longest of these.
"""


class CachedStore(Store):
    """A dataset at an address, read through the cache.

    Args:
        address: of its folder, with a scheme.
        config: of the cache.

    Raises:
        DataError: it is not there, does not answer, is damaged, or the cache is too small for it.
    """

    def __init__(self, address: str, config: CacheConfig) -> None:
        remote = Remote(address, config)
        cache = CacheFolder(Path(config.folder).expanduser(), int(config.max_gb * 1e9))
        content = _fetch_small(remote, cache, MANIFEST_FILE)
        if content is None:
            raise DataError(
                f"no dataset at {remote.address}: it has no {MANIFEST_FILE}. Correct the address, "
                "or copy the folder of a packed dataset there"
            )
        manifest = parse_manifest(content, f"{remote.address}/{MANIFEST_FILE}")
        excluded = parse_excluded(
            _fetch_excluded(remote, cache),
            f"{remote.address}/{EXCLUDED_FILE}",
            manifest.num_samples,
        )
        entry = cache.folder / hashlib.sha256(content).hexdigest()[:32]
        cache.put(entry / MANIFEST_FILE, content)
        self._set(remote, cache, config, entry, excluded)
        self._warn_of_small_cache()

    def _warn_of_small_cache(self) -> None:
        """A shuffled epoch reads a window of shards at once, again and again."""
        sizes = sorted(shard.bytes for shard in self.manifest.shards)
        window = sum(sizes[-WINDOW_SHARDS:])
        if window > self._cache.max_bytes:
            logger.warning(
                "%s: a shuffled epoch reads %.3g GB of shards at once, and data.cache.max_gb is "
                "%g: they will be fetched again and again. Raise it to twice as much for each "
                "source",
                self.address,
                window / 1e9,
                self._config.max_gb,
            )

    def _set(
        self,
        remote: Remote,
        cache: CacheFolder,
        config: CacheConfig,
        entry: Path,
        excluded: Ints,
    ) -> None:
        self.address = remote.address
        self.name = re.sub(r"[^\w.-]", "_", remote.address.rsplit("/", 1)[-1])
        self.manifest = _cached_manifest(entry)
        self.excluded = excluded
        self._remote, self._cache, self._config, self._entry = remote, cache, config, entry
        self._fetched: set[str] = set()
        self._columns = Columns(entry, self.manifest, f"Remove {entry}; it is fetched again then")
        self._mapped: dict[int, int] = {}
        self._ahead = ReadAhead(self._bring, config.ahead)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        """Opened again from the cache's copy, so that all workers read the same dataset."""
        return _reopen, (self._remote, self._cache, self._config, self._entry, self.excluded)

    def column(self, name: str, first: int, last: int) -> Column:
        """Read from the cache's copy; the whole column is fetched when it is first read."""
        if name not in self._fetched:
            self._keep_column(name)
            self._fetched.add(name)
        return self._columns.read(name, first, last)

    def map_shard(self, shard: int) -> memoryview:
        """Map from the cache; fetched and verified where it is not there, or was changed there."""
        entry = self.manifest.shards[shard]
        with self.open_shard(shard) as file:
            self._mapped[shard] = os.fstat(file.fileno()).st_ino
            return map_shard(file, entry, str(self._entry / entry.name))

    def open_shard(self, shard: int) -> BinaryIO:
        """Open the cache's copy, fetched and verified where it is not there."""
        entry = self.manifest.shards[shard]
        path, download = self._entry / entry.name, self._download(shard)
        return self._cache.open(path, entry.bytes, download, sha256=entry.sha256)

    def unverified_shards(self) -> list[int]:
        """None: they are verified as they are fetched, and when they have changed since."""
        return []

    def origins(self) -> Iterator[str]:
        """From the cache's copy."""
        path = self._entry / ORIGINS_FILE
        if not path.is_file():
            content = _fetch_small(self._remote, self._cache, ORIGINS_FILE)
            if content is not None:
                self._cache.put(path, content)
        return read_origins(path, self.address, self.manifest.origins_sha256)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Fetch these in the background, in place of those asked for before."""
        self._ahead.want(self._fitting(shards))

    def _fitting(self, shards: Iterable[int]) -> Iterator[int]:
        """The first of these that the cache holds together: more would push each other out."""
        room = self._cache.max_bytes
        for shard in shards:
            room -= self.manifest.shards[shard].bytes
            if room < 0:
                return
            yield shard

    def is_dropped(self, shard: int) -> bool:
        """It has been evicted since, and maybe fetched again."""
        try:
            there = (self._entry / self.manifest.shards[shard].name).stat().st_ino
        except FileNotFoundError:
            return True
        return there != self._mapped.get(shard)

    def _bring(self, shard: int) -> None:
        entry = self.manifest.shards[shard]
        path, download = self._entry / entry.name, self._download(shard)
        self._cache.add(path, entry.bytes, download, sha256=entry.sha256)

    def _keep_column(self, name: str) -> None:
        file = column_file(name)
        size = self.manifest.num_samples * np.dtype(COLUMNS[name]).itemsize

        def download(path: Path) -> None:
            self._fetch(file, path, size)
            found = path.stat().st_size
            if found != size:
                raise DataError(self._changed(file, f"has {found} bytes instead of {size}"))
            fault = verify_column_file(path, name, self.manifest)
            if fault is not None:
                raise DataError(self._changed(file, fault))

        self._cache.open(self._entry / file, size, download).close()

    def _download(self, shard: int) -> Callable[[Path], None]:
        entry = self.manifest.shards[shard]

        def download(path: Path) -> None:
            self._fetch(entry.name, path, entry.bytes)
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != entry.sha256:
                size = path.stat().st_size
                raise DataError(
                    self._changed(
                        entry.name,
                        f"has {size} bytes of sha256 {found[:12]}…, and the manifest says "
                        f"{entry.bytes} of {entry.sha256[:12]}…",
                    )
                )

        return download

    def _fetch(self, file: str, path: Path, size: int) -> None:
        try:
            self._remote.fetch(file, path, limit=size, size=size)
        except FileNotFoundError as error:
            raise DataError(
                f"{self.address}/{file} is missing. Copy it there again, or pack the dataset again"
            ) from error
        except TooLongError as error:
            what = f"has more than the {size:,} bytes that the manifest says"
            raise DataError(self._changed(file, what)) from error

    def _changed(self, file: str, what: str) -> str:
        return (
            f"{self.address}/{file} {what}: it is damaged, or of another packing. Copy the whole "
            "dataset there again, its manifest last"
        )


def _reopen(
    remote: Remote, cache: CacheFolder, config: CacheConfig, entry: Path, excluded: Ints
) -> CachedStore:
    store = CachedStore.__new__(CachedStore)
    store._set(remote, cache, config, entry, excluded)
    return store


def _cached_manifest(entry: Path) -> Manifest:
    """Return the manifest that a folder of the cache is named by.

    Raises:
        DataError: it was changed there.
    """
    path = entry / MANIFEST_FILE
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest()[:32] != entry.name:
        raise DataError(
            f"{path} was changed after it was fetched. Remove {entry}; it is fetched again then"
        )
    return parse_manifest(content, str(path))


def _fetch_excluded(remote: Remote, cache: CacheFolder) -> bytes:
    try:
        return _fetch_small(remote, cache, EXCLUDED_FILE) or b""
    except DataError as error:
        # S3 says 403 of a file that is not there to whom may not list the bucket.
        raise DataError(
            f"{error}. Where it refuses {EXCLUDED_FILE} because there is none, put an empty one "
            f"beside {MANIFEST_FILE}"
        ) from error


def _fetch_small(remote: Remote, cache: CacheFolder, name: str) -> bytes | None:
    """Return the content of a file whose size nothing tells, or None where there is none."""
    limit = min(UNSIZED_BYTES, cache.max_bytes)
    with cache.scratch(name) as path:
        try:
            remote.fetch(name, path, limit=limit)
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except TooLongError as error:
            raise DataError(
                f"{remote.address}/{name} is longer than {limit:,} bytes, the most that toto "
                "fetches of it. Raise data.cache.max_gb if it is that long, or correct the address"
            ) from error
