"""Fetching the files of a remote dataset: tried again while that can help, and named when not."""

from __future__ import annotations

import errno
import logging
import os
import random
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any

from fsspec.callbacks import Callback

from toto.data.addresses import filesystem
from toto.data.progress import Progress, silent
from toto.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from toto.data.config import CacheConfig

__all__ = ["Remote", "TooLongError"]

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
# Client errors of HTTP that pass: timeout, too early, too many requests.
PASSING_STATUS = {408, 425, 429}
# Errors that no second try mends; a full disk among them.
LASTING_ERRORS = (FileNotFoundError, PermissionError, NotADirectoryError, ValueError, TypeError)
LASTING_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
DATASET_MEND = (
    "Mend the address or the server; for a slow one raise data.cache.stall_seconds or "
    "data.cache.retries"
)


class TooLongError(DataError):
    """A file is longer than it may be."""


class Remote:
    """A folder of files at an address.

    Args:
        address: with a scheme.
        config: how often and how long to try.
        mend: what the user can do when a file does not come.
    """

    def __init__(self, address: str, config: CacheConfig, mend: str = DATASET_MEND) -> None:
        self.address = address.rstrip("/")
        self._config = config
        self._mend = mend
        self._opened: tuple[int, Any, str] | None = None

    def fetch(
        self,
        name: str,
        to: Path,
        *,
        limit: int,
        size: int | None = None,
        progress: Progress = silent,
    ) -> None:
        """Copy the file `name` to `to`, which appears once it is complete.

        Each try writes to a separate file, `to`'s name followed by a number.

        Args:
            name: of the file in the folder.
            to: a path on this machine.
            limit: bytes that it may have at most; a longer body is not read to its end.
            size: bytes that it has, where known; fewer mean a broken connection.
            progress: called with bytes, where the server says how many there are.

        Raises:
            FileNotFoundError: it does not exist there.
            TooLongError: more came than the limit.
            DataError: it did not come in as many tries as there are.
        """
        tries = self._config.retries + 1
        for number in range(tries):
            part = to.with_name(f"{to.name}.{secrets.token_hex(8)}")
            try:
                self._fetch_watched(name, part, limit, progress)
                _require_size(part, size)
                part.replace(to)
                return
            except (FileNotFoundError, TooLongError):
                raise
            # Each package behind fsspec has errors of its own, which have nothing in common.
            except Exception as error:
                failure = error
            finally:
                part.unlink(missing_ok=True)
            if _is_lasting(failure) or number == tries - 1:
                break
            pause = min(FIRST_PAUSE_SECONDS * 2**number, LONGEST_PAUSE_SECONDS)
            logger.warning("%s/%s: %s; trying again", self.address, name, _text(failure))
            # Many workers fail together; they should not all come back together.
            time.sleep(pause * random.uniform(0.5, 1.0))
        said = "1 try" if number == 0 else f"{number + 1} tries"
        raise DataError(
            f"{self.address}/{name} cannot be fetched ({said}): {_text(failure)}. {self._mend}"
        ) from failure

    def _fetch_watched(self, name: str, part: Path, limit: int, progress: Progress) -> None:
        """Fetch in a thread of its own, and leave it when nothing more comes.

        Not every file system has timeouts, and a thread cannot be stopped from outside: one that
        was left ends when something comes after all.
        """
        system, folder = self._filesystem()
        left = threading.Event()
        watch = _Watch(left, limit, progress)
        fetching = _Call(lambda: system.get_file(f"{folder}/{name}", str(part), callback=watch))
        size = 0
        while not fetching.finished.wait(self._config.stall_seconds):
            now = part.stat().st_size if part.exists() else 0
            if now == size:
                left.set()
                raise TimeoutError(
                    f"nothing came for {self._config.stall_seconds:g} s, after {size} bytes"
                )
            size = now
        if fetching.error is not None:
            raise fetching.error
        # Not every file system calls back.
        _require_at_most(part.stat().st_size, limit)

    def _filesystem(self) -> tuple[Any, str]:
        """One a process: connections and event loops do not outlive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            system, folder = filesystem(
                self.address, self._config.stall_seconds, self._config.redirect_hosts
            )
            self._opened = (os.getpid(), system, folder.rstrip("/"))
        return self._opened[1:]

    def __reduce__(self) -> tuple[object, tuple[str, CacheConfig, str]]:
        return Remote, (self.address, self._config, self._mend)


class _Call:
    """A call under way in a thread that does not keep the process from ending."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.finished = threading.Event()
        self.error: Exception | None = None
        self._call = call
        threading.Thread(target=self._run, daemon=True, name="toto-fetch").start()

    def _run(self) -> None:
        try:
            self._call()
        except Exception as error:
            self.error = error
        finally:
            self.finished.set()


class _LeftError(Exception):
    """Nobody waits for this fetch any more."""


class _Watch(Callback):  # type: ignore[misc]
    """Reports how far a fetch is; ends one that was abandoned, or brings more than it may."""

    def __init__(self, left: threading.Event, limit: int, progress: Progress) -> None:
        super().__init__()
        self._left = left
        self._limit = limit
        self._progress = progress
        self._told = 0

    def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
        """Called by the file system after each piece."""
        if self._left.is_set():
            raise _LeftError
        # Not the size that is announced: a page that reports an error has one too.
        _require_at_most(self.value, self._limit)
        if self.size and self.value > self._told:
            self._told = self.value
            self._progress(self.value, self.size)


def _require_at_most(size: int, limit: int) -> None:
    if size > limit:
        raise TooLongError(f"more than {limit:,} bytes came")


def _require_size(part: Path, size: int | None) -> None:
    found = part.stat().st_size
    if size is not None and found < size:
        raise ConnectionError(
            f"{found} of {size} bytes came. If it is as short there, copy it there again, or pack "
            "the dataset again"
        )


def _is_lasting(error: Exception) -> bool:
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in PASSING_STATUS
    if isinstance(error, OSError) and error.errno in LASTING_ERRNO:
        return True
    return isinstance(error, (DataError, *LASTING_ERRORS))


def _text(error: Exception) -> str:
    """Timeouts often say nothing."""
    return str(error) or type(error).__name__
