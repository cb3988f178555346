"""Shards that will be needed soon are fetched by threads of this process."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from typing import TYPE_CHECKING

from toto.errors import TotoError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["ReadAhead"]

logger = logging.getLogger(__name__)


class ReadAhead:
    """Fetches what was last asked for, in that order, at most `threads` at once.

    A shard that cannot be fetched is left to the read that needs it, which says why.

    Args:
        fetch: brings one shard.
        threads: at most so many fetch at once; 0 fetches nothing ahead.
    """

    def __init__(self, fetch: Callable[[int], None], threads: int) -> None:
        self._fetch = fetch
        self._threads = threads
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._wanted: list[int] = []
        self._pending: deque[int] = deque()
        self._running = 0

    def want(self, shards: Iterable[int]) -> None:
        """Fetch these next, in place of what is pending. Returns at once."""
        if not self._threads:
            return
        if self._process != os.getpid():
            self._begin()  # a fork brings neither the threads nor, for sure, an open lock
        wanted = list(shards)
        if wanted == self._wanted:
            return
        self._wanted = wanted
        with self._lock:
            self._pending = deque(wanted)
            missing = min(self._threads, len(wanted)) - self._running
            self._running += max(missing, 0)
        for _ in range(missing):
            threading.Thread(target=self._work, daemon=True, name="toto-readahead").start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._pending:
                    self._running -= 1
                    return
                shard = self._pending.popleft()
            try:
                self._fetch(shard)
            except TotoError as error:
                logger.debug("not fetched ahead: %s", error)
