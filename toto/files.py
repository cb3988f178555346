"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
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
    "resumed_folder",
    "sole_writer",
    "sync",
    "write_atomic",
]

PARTIAL = ".partial"
"""How the name of what is not whole yet ends."""

RANDOM = r"[a-z0-9_]{8}"
"""What `tempfile` makes the rest of a name unpredictable with."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system that knows no locks answers."""

# One who only asks holds the lock for an instant.
CLAIM_TRIES, CLAIM_PAUSE = 5, 0.05
_claimed: dict[Path, str] = {}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the system says against writing `path` into a RunError that says what to do.

    Libraries in another language report a full disk as an exception of their own: safetensors'
    SafetensorError carries the text of the system's error, and is recognised by it.
    """
    try:
        yield
    except OSError as error:
        raise RunError(_unwritable(path, error)) from error
    except Exception as error:
        # By name, because this module is imported without torch and safetensors.
        if type(error).__name__ != "SafetensorError" or "I/O error" not in str(error):
            raise
        raise RunError(_unwritable(path, error)) from error


def _unwritable(path: Path, error: Exception) -> str:
    return (
        f"{path} cannot be written: {error}. Make room or correct the permissions, and run the "
        "command again; a training run is resumed with --resume"
    )


def require_writable(path: Path, fix: str, *, folder: bool = False) -> None:
    """Refuse an output that cannot be made, before the work on it; nothing is left of the attempt.

    Args:
        path: a file or folder to be made, or a file to be replaced; missing folders above it are
            made later.
        fix: a sentence without a full stop, for the message.
        folder: whether `path` may be a folder that files are put into.

    Raises:
        UserError: the folder of `path`, or the nearest one above, takes no new file, or `path` is
            a folder where a file is to be replaced.
    """
    place = next(above for above in path.absolute().parents if os.path.lexists(above))
    try:
        if path.is_dir():
            if not folder:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            place = path
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
    """Yield a name to write to; the file becomes `path` once the block has ended well.

    The name is in a new folder next to `path` that this process alone can enter, and whose name is
    random, so that no link that another user planted is followed. What a killed process left of
    the same file is removed first.

    Raises:
        OSError: the disk is full, or the folder is missing or refuses; `path` is as it was.
    """
    with _private_folder(path) as folder:
        unfinished = folder / path.name
        yield unfinished
        apply_umask(unfinished)
        sync(unfinished)
        unfinished.replace(path)
        sync(path.parent)


@contextmanager
def _private_folder(path: Path) -> Iterator[Path]:
    """Make `.NAME.RANDOM.partial`, locked, so that a later process knows what nobody uses."""
    _remove_abandoned(path)
    while True:
        folder = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        with suppress(OSError):  # a file system without locks: then nobody removes it either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Between its making and its locking it looked abandoned.
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)
    unfinished = path.parent / os.path.basename(folder)
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    """Remove the folders of `_private_folder` that a killed process left for `path`."""
    pattern = re.compile(re.escape(f".{path.name}.") + RANDOM + re.escape(PARTIAL))
    with os.scandir(path.parent) as entries:
        found = [entry.path for entry in entries if pattern.fullmatch(entry.name)]
    for folder in found:
        with suppress(OSError):  # a link, another's, in use, or gone by now
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(descriptor)


def resumed_folder(folder: Path) -> bool:
    """Make a working folder, or accept one that an interrupted command of this user left.

    Returns:
        Whether it was there.

    Raises:
        UserError: it is a link or another user's, so that files could end up elsewhere.
        OSError: the disk is full or refuses.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
            return True
        raise UserError(
            f"{folder} is where the unfinished output goes, and it is no folder of yours. Remove "
            "it, or choose another output"
        ) from None
    return False


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
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
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
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
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


@contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """Keep other processes from writing the output `out` until the block or the process ends.

    Folders above `out` that are missing are made, and removed again if they stay empty. A file
    system without locks keeps no process out.

    Args:
        out: a folder, which may be a mount point whose parent takes no files, or a name to come.

    Raises:
        UserError: another process writes it; the message says which.
        RunError: the folder refuses to be written.
    """
    place = out.parent
    if out.is_dir() and not os.access(place, os.W_OK):
        place = out
    lock = place / f".{out.name}.writing"
    text = f"process {os.getpid()} on {socket.gethostname()}"
    with ExitStack() as held:
        held.enter_context(no_empty_folder(place))
        with disk_errors(out):
            place.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(claim(lock, text))
            except BlockingIOError:
                raise UserError(
                    f"{out} is being written by {claimant(lock) or 'another process'}. Wait for "
                    "it, or choose another output"
                ) from None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
        yield


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
