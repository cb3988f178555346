"""A folder of files fetched from elsewhere, of a bounded size, shared by any number of processes.

    folder/.lock                       held for the moments in which room is made
    folder/.<name>.<number>.partial    a file of unknown size that is being fetched
    folder/<entry>/shard-00000.tar …   evicted when not used for longest
    folder/<entry>/…                   other files, kept

A verified file has a time of last change that follows from its checksum (`_stamp`), which any
later change replaces: a process that opens a file without its stamp hashes it again. The order of
use is therefore that of the times of access, which are set at each opening.

An unfinished file is its own lock and holds its size in its name, so that space is taken before it
is used and what a killed process left is seen as such.

A shard that is evicted while some process has it mapped stays readable there, as Linux keeps a
removed file until it is unmapped; its space comes back when that process next maps another shard.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from toto.errors import DataError
from toto.files import PARTIAL, sync, write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader

__all__ = ["CacheFolder", "cache_errors"]

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
UNFINISHED = re.compile(rf"\.(?P<name>.+)\.(?P<size>\d+){re.escape(PARTIAL)}")
SCRATCH = re.compile(rf"\..+\.[0-9a-f]{{16}}{re.escape(PARTIAL)}(\.content.*)?")
# Only these sub-folders are the cache's: a folder of datasets given by mistake loses nothing.
ENTRY = re.compile(r"[0-9a-f]{32}")
EVICTABLE = re.compile(r"shard-\d+\.tar")
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class CacheFolder:
    """Files of other places in a folder of a bounded size.

    Attributes:
        folder: its sub-folders hold the files.
        max_bytes: of all files together, the unfinished ones counted as if they were whole.
    """

    folder: Path
    max_bytes: int

    def open(
        self,
        path: Path,
        size: int,
        download: Callable[[Path], None],
        *,
        sha256: str | None = None,
    ) -> BinaryIO:
        """Open the file `path`; it is downloaded where it is not there, or was changed there.

        While another process or thread downloads it, this waits.

        Args:
            path: in a sub-folder.
            size: in bytes.
            download: writes the file to the path that it is given, verified.
            sha256: of its content; None where the caller verifies what it reads.

        Raises:
            DataError: the folder is too small for the file or cannot be written, or as `download`.
        """
        with cache_errors(path):
            while True:
                file = self._open_whole(path, size, sha256)
                if file is not None:
                    return file
                claim = self._claim(path, size)
                if claim is None:
                    time.sleep(POLL_SECONDS)
                    continue
                return self._fill(claim, path, download, sha256)

    def add(self, path: Path, size: int, download: Callable[[Path], None], *, sha256: str) -> None:
        """Download `path` where it is not there and nobody else does so now; as `open`."""
        with cache_errors(path):
            if path.exists():
                return
            claim = self._claim(path, size)
            if claim is not None:
                self._fill(claim, path, download, sha256).close()

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Yield the path of a file to fetch into; it is removed after the block.

        What a killed process left is removed when room is next made.

        Raises:
            DataError: the folder cannot be written.
        """
        with cache_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._survey()
                unique = secrets.token_hex(8)
                claim = _Claim.make(self.folder / f".{name}.{unique}{PARTIAL}")
            content = claim.content
            try:
                yield content
            finally:
                with self._locked():
                    content.unlink(missing_ok=True)
                    claim.release()

    def put(self, path: Path, content: bytes) -> None:
        """Keep a small file, which is never evicted, unless it exists.

        Raises:
            DataError: the folder cannot be written, or has no room for it.
        """
        with cache_errors(path), self._locked():
            path.parent.mkdir(exist_ok=True)
            if not path.exists():
                taken, in_use = self._survey()
                missing = taken + len(content) - self.max_bytes
                if missing > 0:
                    self._evict(missing, path, in_use)
                write_atomic(path, content.decode())

    def _open_whole(self, path: Path, size: int, sha256: str | None) -> BinaryIO | None:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        if os.fstat(file.fileno()).st_size != size or not _is_unchanged(file, sha256):
            logger.warning("%s was changed after it was fetched; fetching it again", path)
            file.close()
            path.unlink(missing_ok=True)
            return None
        _set_stamp(file, sha256)
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

    def _fill(
        self, claim: _Claim, path: Path, download: Callable[[Path], None], sha256: str | None
    ) -> BinaryIO:
        """Download into a claim; the file gets its name when it is whole and on the disk."""
        content = claim.content
        try:
            download(content)
            sync(content)
            # Opened before anybody else can see, and so evict, it.
            file = content.open("rb")
            _set_stamp(file, sha256)
            content.replace(path)
            return file
        finally:
            with self._locked():
                content.unlink(missing_ok=True)
                claim.release()

    def _survey(self) -> tuple[int, list[Path]]:
        """Return the bytes taken and the unfinished files; remove what a killed process left."""
        taken = 0
        in_use: list[Path] = []
        entries = [*self._files(), *self._scratch_files()]
        for entry in entries:
            if not entry.name.endswith(PARTIAL):
                continue
            if entry.is_dir(follow_symlinks=False):  # of `write_atomic`, which holds our lock
                shutil.rmtree(entry.path, ignore_errors=True)
                continue
            if _is_locked(Path(entry.path)):
                in_use.append(Path(entry.path))
                match = UNFINISHED.fullmatch(entry.name)
                taken += int(match["size"]) if match is not None else 0
            else:
                Path(entry.path).unlink(missing_ok=True)
        names = tuple(str(path) for path in in_use)
        sized = tuple(str(path) for path in in_use if UNFINISHED.fullmatch(path.name))
        for entry in entries:
            if not (entry.name.startswith(".") and PARTIAL in entry.name):
                taken += entry.stat().st_size
            elif not entry.path.startswith(names):
                Path(entry.path).unlink(missing_ok=True)
            elif not entry.path.startswith(sized):
                # Its size was not known beforehand, so it counts as far as it has come.
                with suppress(FileNotFoundError):
                    taken += entry.stat().st_size
        return taken, in_use

    def _evict(self, missing: int, path: Path, in_use: list[Path]) -> bool:
        """Remove the shards not used for longest; False where others must finish first."""
        shards = [entry for entry in self._files() if EVICTABLE.fullmatch(entry.name)]
        for entry in sorted(shards, key=lambda shard: shard.stat().st_atime_ns):
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

    def _scratch_files(self) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self.folder) as entries:
            yield from (entry for entry in entries if SCRATCH.fullmatch(entry.name))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(self.folder / LOCK_FILE, flags)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            _unlock(descriptor)


@dataclass(frozen=True)
class _Claim:
    """An unfinished file, locked. Made and released under the folder's lock.

    Attributes:
        path: of the lock.
        descriptor: that holds it.
        content: where the file itself is fetched to. Users may share the folder, so its name
            cannot be guessed: a link that another user planted would be written through.
    """

    path: Path
    descriptor: int
    content: Path

    @classmethod
    def make(cls, path: Path) -> _Claim:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        content = path.with_name(f"{path.name}.content-{secrets.token_hex(8)}")
        return cls(path, descriptor, content)

    def release(self) -> None:
        self.path.unlink(missing_ok=True)
        _unlock(self.descriptor)


def _stamp(sha256: str) -> int:
    """Return a time before 2004, in nanoseconds, that no file gets by being written."""
    return int(sha256[:7], 16) * 4 * 10**9


def _is_unchanged(file: BinaryIO, sha256: str | None) -> bool:
    if sha256 is None or os.fstat(file.fileno()).st_mtime_ns == _stamp(sha256):
        return True
    return hashlib.file_digest(cast("BufferedReader", file), "sha256").hexdigest() == sha256


def _set_stamp(file: BinaryIO, sha256: str | None) -> None:
    """Note that a file is used now, and that it was verified if `sha256` is given."""
    changed = os.fstat(file.fileno()).st_mtime_ns if sha256 is None else _stamp(sha256)
    with suppress(PermissionError):  # another user's, in a folder that users share
        os.utime(file.fileno(), ns=(time.time_ns(), changed))


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
def cache_errors(path: Path) -> Iterator[None]:
    """What the system says against the cache, as a DataError that says how to go on."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: the cache of shards cannot be used: {error}. Make room or mend the "
            "permissions, or set data.cache.folder"
        ) from error
