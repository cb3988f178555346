"""Remote datasets, read from a bounded folder of this machine that their shards are fetched into.

    folder/.lock                                  held for the moments in which room is made
    folder/<sha256 of the manifest>/manifest.json, offset.u64 …    once, and kept
    folder/<sha256 of the manifest>/shard-00000.tar …              fetched, verified, evicted

Any number of processes share a folder. An unfinished file is its own lock and holds its size in
its name, so that space is taken before it is used and what a killed process left is seen as such.

A shard that is evicted while some process has it mapped stays readable there, as Linux keeps a
removed file until it is unmapped; its space comes back when that process next maps another shard.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from toto.data.fetch import Remote
from toto.data.manifest import MANIFEST_FILE, parse_manifest
from toto.data.readahead import ReadAhead
from toto.data.store import (
    COLUMNS,
    EXCLUDED_FILE,
    ORIGINS_FILE,
    Column,
    Ints,
    Store,
    column_file,
    map_shard,
    parse_excluded,
    read_column,
    read_origins,
)
from toto.errors import DataError
from toto.files import PARTIAL, sync, write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from toto.data.config import CacheConfig

__all__ = ["CacheFolder", "CachedStore"]

LOCK_FILE = ".lock"
UNFINISHED = re.compile(rf"\.(?P<name>.+)\.(?P<size>\d+){re.escape(PARTIAL)}")
# Only these sub-folders are the cache's: a folder of datasets given by mistake loses nothing.
ENTRY = re.compile(r"[0-9a-f]{32}")
EVICTABLE = re.compile(r"shard-\d+\.tar")
POLL_SECONDS = 0.05


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
            _fetch_small(remote, cache, EXCLUDED_FILE) or b"",
            f"{remote.address}/{EXCLUDED_FILE}",
            manifest.num_samples,
        )
        entry = cache.folder / hashlib.sha256(content).hexdigest()[:32]
        cache.put(entry / MANIFEST_FILE, content)
        self._set(remote, cache, config, entry, excluded)

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
        self.manifest = parse_manifest((entry / MANIFEST_FILE).read_bytes(), str(entry))
        self.excluded = excluded
        self._remote, self._cache, self._config, self._entry = remote, cache, config, entry
        self._columns: set[str] = set()
        self._mapped: dict[int, int] = {}
        self._ahead = ReadAhead(self._bring, config.ahead)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        """Opened again from the cache's copy, so that all workers read the same dataset."""
        return _reopen, (self._remote, self._cache, self._config, self._entry, self.excluded)

    def column(self, name: str, first: int, last: int) -> Column:
        """From the cache's copy; the whole column is fetched when it is first read."""
        file = column_file(name)
        if name not in self._columns:
            size = self.manifest.num_samples * np.dtype(COLUMNS[name]).itemsize
            self._keep(file, size)
            self._columns.add(name)
        return read_column(self._entry / file, name, first, last)

    def map_shard(self, shard: int) -> memoryview:
        """From the cache; fetched and verified where it is not there."""
        entry = self.manifest.shards[shard]
        path = self._entry / entry.name
        with self._cache.open(path, entry.bytes, self._download(shard)) as file:
            self._mapped[shard] = os.fstat(file.fileno()).st_ino
            return map_shard(file, entry, str(path))

    def origins(self) -> Iterator[str]:
        """From the cache's copy."""
        path = self._entry / ORIGINS_FILE
        if not path.is_file():
            content = _fetch_small(self._remote, self._cache, ORIGINS_FILE)
            if content is not None:
                self._cache.put(path, content)
        return read_origins(path, self.address)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Fetch these in the background, in place of those asked for before."""
        self._ahead.want(shards)

    def is_dropped(self, shard: int) -> bool:
        """It has been evicted since, and maybe fetched again."""
        try:
            there = (self._entry / self.manifest.shards[shard].name).stat().st_ino
        except FileNotFoundError:
            return True
        return there != self._mapped.get(shard)

    def _bring(self, shard: int) -> None:
        entry = self.manifest.shards[shard]
        self._cache.add(self._entry / entry.name, entry.bytes, self._download(shard))

    def _keep(self, file: str, size: int) -> None:
        """A file whose size the manifest decides, but not its content."""

        def download(path: Path) -> None:
            self._fetch(file, path, size)
            found = path.stat().st_size
            if found != size:
                raise DataError(self._changed(file, f"has {found} bytes instead of {size}"))

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
            self._remote.fetch(file, path, size)
        except FileNotFoundError as error:
            raise DataError(
                f"{self.address}/{file} is missing. Copy it there again, or pack the dataset again"
            ) from error

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


def _fetch_small(remote: Remote, cache: CacheFolder, name: str) -> bytes | None:
    """The content of a file that is not counted, or None where it is not there."""
    path = cache.folder / f".{name}.{os.getpid()}-{time.monotonic_ns()}"
    try:
        with _cache_errors(path):
            cache.folder.mkdir(parents=True, exist_ok=True)
        remote.fetch(name, path)
        return path.read_bytes()
    except FileNotFoundError:
        return None
    finally:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class CacheFolder:
    """Files of other places in a folder of a bounded size.

    Attributes:
        folder: its sub-folders hold the files.
        max_bytes: of all files together, the unfinished ones counted as if they were whole.
    """

    folder: Path
    max_bytes: int

    def open(self, path: Path, size: int, download: Callable[[Path], None]) -> BinaryIO:
        """The file `path`, open; downloaded where it is not there.

        While another process or thread downloads it, this waits.

        Args:
            path: in a sub-folder.
            size: in bytes.
            download: writes the file to the path that it is given, verified.

        Raises:
            DataError: the folder is too small for the file or cannot be written, or as `download`.
        """
        with _cache_errors(path):
            while True:
                file = self._open_whole(path, size)
                if file is not None:
                    return file
                claim = self._claim(path, size)
                if claim is None:
                    time.sleep(POLL_SECONDS)
                    continue
                return self._fill(claim, path, download)

    def add(self, path: Path, size: int, download: Callable[[Path], None]) -> None:
        """Download `path` where it is not there and nobody else does so now; as `open`."""
        with _cache_errors(path):
            if path.exists():
                return
            claim = self._claim(path, size)
            if claim is not None:
                self._fill(claim, path, download).close()

    def put(self, path: Path, content: bytes) -> None:
        """A small file, which is neither counted beforehand nor evicted, where it is not there.

        Raises:
            DataError: the folder cannot be written.
        """
        with _cache_errors(path), self._locked():
            path.parent.mkdir(exist_ok=True)
            if not path.exists():
                write_atomic(path, content.decode())

    def _open_whole(self, path: Path, size: int) -> BinaryIO | None:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        if os.fstat(file.fileno()).st_size != size:
            file.close()
            path.unlink(missing_ok=True)
            return None
        # The order of use is the order of these times; reading alone need not leave one.
        with suppress(PermissionError):  # another user's, in a folder that users share
            os.utime(file.fileno())
        return file

    def _claim(self, path: Path, size: int) -> _Claim | None:
        """Space for a file, and the sole right to write it; None where it must be waited for."""
        unfinished = path.with_name(f".{path.name}.{size}{PARTIAL}")
        with self._locked():
            if path.exists():
                return None
            taken, in_use = self._survey()
            if unfinished in in_use:
                return None
            missing = taken + size - self.max_bytes
            if missing > 0 and not self._evict(missing, path, in_use):
                return None
            return _Claim.make(unfinished)

    def _fill(self, claim: _Claim, path: Path, download: Callable[[Path], None]) -> BinaryIO:
        """Download into a claim; the file gets its name when it is whole and on the disk."""
        content = claim.path.with_name(f"{claim.path.name}.content")
        try:
            download(content)
            sync(content)
            # Opened before anybody else can see, and so evict, it.
            file = content.open("rb")
            content.replace(path)
            return file
        finally:
            with self._locked():
                content.unlink(missing_ok=True)
                claim.release()

    def _survey(self) -> tuple[int, list[Path]]:
        """Bytes taken, and the unfinished files; what a killed process left is removed."""
        taken = 0
        in_use: list[Path] = []
        for entry in self._files():
            match = UNFINISHED.fullmatch(entry.name)
            if match is not None:
                if _is_locked(Path(entry.path)):
                    in_use.append(Path(entry.path))
                    taken += int(match["size"])
                else:
                    Path(entry.path).unlink(missing_ok=True)
        names = tuple(str(path) for path in in_use)
        for entry in self._files():
            if entry.name.startswith(".") and PARTIAL in entry.name:
                if not entry.path.startswith(names):
                    Path(entry.path).unlink(missing_ok=True)
            else:
                taken += entry.stat().st_size
        return taken, in_use

    def _evict(self, missing: int, path: Path, in_use: list[Path]) -> bool:
        """Remove the shards not used for longest; False where others must finish first."""
        shards = [entry for entry in self._files() if EVICTABLE.fullmatch(entry.name)]
        for entry in sorted(shards, key=lambda shard: shard.stat().st_mtime_ns):
            if missing <= 0:
                break
            missing -= entry.stat().st_size
            Path(entry.path).unlink(missing_ok=True)
        if missing > 0 and not in_use:
            raise DataError(
                f"{self.folder} may hold {self.max_bytes / 1e9:g} GB, {missing / 1e9:.3g} GB too "
                f"few for {path.name} beside the columns of the index. Raise data.cache.max_gb"
            )
        return missing <= 0

    def _files(self) -> Iterator[os.DirEntry[str]]:
        for folder in self.folder.iterdir():
            if ENTRY.fullmatch(folder.name) and folder.is_dir():
                with os.scandir(folder) as entries:
                    yield from entries

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            _unlock(descriptor)


@dataclass(frozen=True)
class _Claim:
    """An unfinished file, locked. Made and released under the folder's lock."""

    path: Path
    descriptor: int

    @classmethod
    def make(cls, path: Path) -> _Claim:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return cls(path, descriptor)

    def release(self) -> None:
        self.path.unlink(missing_ok=True)
        _unlock(self.descriptor)


def _unlock(descriptor: int) -> None:
    # Explicitly: a process forked meanwhile has the descriptor too, and would keep the lock.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _is_locked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return True
    _unlock(descriptor)
    return False


@contextmanager
def _cache_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: the cache of shards cannot be used: {error}. Make room or mend the "
            "permissions, or set data.cache.folder"
        ) from error
