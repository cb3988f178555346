"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from toto.errors import RunError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "NO_LOCKS",
    "PARTIAL",
    "apply_umask",
    "claim",
    "claimant",
    "disk_errors",
    "locked",
    "no_empty_folder",
    "replacing",
    "require_writable",
    "sync",
    "write_atomic",
]

PARTIAL = ".partial"
"""How the name of what is not whole yet ends."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system that knows no locks answers."""

# One who only asks holds the lock for an instant.
CLAIM_TRIES, CLAIM_PAUSE = 5, 0.05
_claimed: dict[Path, str] = {}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What the system says against writing `path`, as a RunError that says how to go on."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error}. Make room or mend the permissions, and run the "
            "command again; a training run goes on with --resume"
        ) from error


def require_writable(path: Path, fix: str) -> None:
    """Refuse an output that cannot be made, before the work on it; nothing is left of the attempt.

    Args:
        path: a file or folder to be made, or a file to be replaced; missing folders above it are
            made later.
        fix: a sentence without a full stop, for the message.

    Raises:
        UserError: the nearest folder above `path` takes no new file, or `path` is a folder where
            a file is to be replaced.
    """
    place = next(above for above in path.absolute().parents if os.path.lexists(above))
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. {fix}") from error


@contextmanager
def no_empty_folder(path: Path) -> Iterator[None]:
    """Remove a folder and its parents at the end of the block where they are new and still empty.

    A command that is refused after it made its folder leaves nothing behind then.

    Args:
        path: of the folder, which may not be there yet.
    """
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    finally:
        for folder in new:
            if not folder.is_dir() or any(folder.iterdir()):
                break
            folder.rmdir()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; the file becomes `path` once the block has ended well.

    Raises:
        OSError: the disk is full, or the folder is missing or refuses; `path` is as it was.
    """
    unfinished = path.with_name(f".{path.name}{PARTIAL}")
    try:
        yield unfinished
        apply_umask(unfinished)
        sync(unfinished)
        unfinished.replace(path)
        sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def apply_umask(path: Path) -> None:
    """Give a file the permissions that the umask grants a new file, whatever library wrote it.

    safetensors makes its files readable by their owner alone, so that a group that shares a folder
    could not load a model. A file system without permissions keeps its own.

    Raises:
        OSError: the file is missing.
    """
    with suppress(PermissionError):
        path.chmod(0o666 & ~_UMASK)


def _umask() -> int:
    # It can only be read by setting it; the strictest value harms nothing meanwhile.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


_UMASK = _umask()  # when this is imported, before there are threads that make files


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; others wait. It ends with the block, or with the process.

    Raises:
        OSError: the folder is missing or refuses, or its file system knows no locks.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # The one before may have removed the file while we waited: then the name is another's.
            if not _is_named(descriptor, path):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


@contextmanager
def claim(path: Path, text: str) -> Iterator[None]:
    """Hold the file `path` alone, with `text` in it; it goes with the block.

    The lock is the process', not its children's: the kernel lets go of it when the process dies,
    however it dies, and a worker that outlives it does not keep it. NFS knows this lock too.

    Raises:
        BlockingIOError: another holds it; `claimant` says who.
        OSError: the folder is missing or refuses; with an errno of NO_LOCKS: it knows no locks.
    """
    name = path.resolve()
    if name in _claimed:
        raise BlockingIOError(errno.EAGAIN, "held by this process", str(path))
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock_at_once(descriptor)
            # The one before may have removed the file after we opened it.
            if not _is_named(descriptor, path):
                continue
            os.ftruncate(descriptor, 0)
            os.write(descriptor, text.encode())
            _claimed[name] = text
            try:
                yield
            finally:
                del _claimed[name]
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def claimant(path: Path) -> str | None:
    """What the holder of `path` wrote into it; None where nobody holds it.

    Where the file system knows no locks, a file that is there counts as held.
    """
    # A process that closes any descriptor of a file lets go of its own lock on it: ask memory.
    if (own := _claimed.get(path.resolve())) is not None:
        return own
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if isinstance(error, (BlockingIOError, PermissionError)) or error.errno in NO_LOCKS:
            return os.read(descriptor, 2**16).decode(errors="replace")
        raise
    finally:
        os.close(descriptor)
    return None


def _lock_at_once(descriptor: int) -> None:
    for turn in range(CLAIM_TRIES):
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # POSIX leaves it EAGAIN or EACCES
            if turn == CLAIM_TRIES - 1:
                raise BlockingIOError(error.errno, "held by another process") from error
            time.sleep(CLAIM_PAUSE)
        else:
            return


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether `path` is the name of this open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step; see `replacing`."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
