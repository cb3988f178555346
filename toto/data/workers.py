"""A function over many items, in order, in processes that may die without taking others down.

The pool of the standard library is lost as a whole when a process dies, and does not say over which
item. FFmpeg and the picture libraries do die over damaged files.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Generic, TypeVar

from toto.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

__all__ = ["Crash", "map_in_workers", "num_cores"]

Item = TypeVar("Item")
Result = TypeVar("Result")

QUEUED = 2
"""Chunks that a worker holds: one under way and the next, so that it never waits."""
AHEAD = 8
"""Chunks a worker that may be finished and not taken yet."""
TRIES = 2
"""Deaths over one item alone before it is to blame: the system kills processes too."""
READY = "ready"
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Crash:
    """In place of a result: the process died over this item, twice."""

    exit_code: int

    def __str__(self) -> str:
        how = f"signal {-self.exit_code}" if self.exit_code < 0 else f"exit code {self.exit_code}"
        return f"the decoder crashed ({how})"


@dataclass
class _Chunk(Generic[Item, Result]):
    items: list[Item]
    results: list[Result | Crash] | None = None
    deaths: int = 0
    parts: list[_Chunk[Item, Result]] = field(default_factory=list)
    """The same items one by one, after a crash."""

    def collect(self) -> list[Result | Crash] | None:
        """The results, once all are there."""
        if not self.parts:
            return self.results
        found: list[Result | Crash] = []
        for part in self.parts:
            if part.results is None:
                return None
            found += part.results
        return found


class _Worker(Generic[Item, Result]):
    def __init__(self, function: Callable[[Item], Result]) -> None:
        self.connection, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(function, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.chunks: deque[_Chunk[Item, Result]] = deque()
        self.ready = False

    def take(self, chunk: _Chunk[Item, Result]) -> None:
        self.chunks.append(chunk)
        # To one that has died nothing can be sent; its chunks are given to another.
        try:
            self.connection.send(chunk.items)
        except OSError:
            return

    def stop(self) -> int:
        self.connection.close()
        self.process.join()
        return self.process.exitcode or 0


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_workers(
    function: Callable[[Item], Result],
    chunks: Iterable[list[Item]],
    *,
    workers: int,
) -> Generator[list[Result | Crash], None, None]:
    """The results of each chunk of items, in order.

    Args:
        function: importable by name; what it raises ends the worker, so it should raise nothing.
        chunks: taken as they are needed, a few ahead.
        workers: processes, at least one.

    Raises:
        RunError: the processes cannot be started.
    """
    pool: list[_Worker[Item, Result]] = [_Worker(function) for _ in range(workers)]
    source = iter(chunks)
    order: deque[_Chunk[Item, Result]] = deque()
    again: deque[_Chunk[Item, Result]] = deque()
    try:
        while True:
            _hand_out(pool, source, order, again)
            while order and (results := order[0].collect()) is not None:
                order.popleft()
                yield results
                _hand_out(pool, source, order, again)
            if not order:
                return
            busy = [worker.connection for worker in pool if worker.chunks]
            for connection in wait(busy):
                number = next(n for n, w in enumerate(pool) if w.connection is connection)
                if not _receive(pool[number]):
                    again += _requeue(pool[number])
                    pool[number] = _Worker(function)
    finally:
        for worker in pool:
            worker.process.kill()
            worker.stop()


def _hand_out(
    pool: list[_Worker[Item, Result]],
    source: Iterator[list[Item]],
    order: deque[_Chunk[Item, Result]],
    again: deque[_Chunk[Item, Result]],
) -> None:
    """Give every worker that has room the next chunk, those left by a dead worker first."""
    for room in range(QUEUED):
        for worker in pool:
            if len(worker.chunks) > room:
                continue
            if again:
                worker.take(again.popleft())
            elif len(order) < AHEAD * len(pool) and (items := next(source, None)) is not None:
                chunk: _Chunk[Item, Result] = _Chunk(items)
                order.append(chunk)
                worker.take(chunk)


def _receive(worker: _Worker[Item, Result]) -> bool:
    """Take what a worker sent; False where it died."""
    try:
        message = worker.connection.recv()
    except (EOFError, OSError):
        return False
    if message == READY:
        worker.ready = True
    else:
        worker.chunks.popleft().results = message
    return True


def _requeue(worker: _Worker[Item, Result]) -> list[_Chunk[Item, Result]]:
    """The chunks of a dead worker: the one under way item by item, the others as they are."""
    exit_code = worker.stop()
    if not worker.ready:
        raise RunError(
            f"a worker could not start (exit code {exit_code}). In a script of your own, call this "
            'under `if __name__ == "__main__":`, or set workers=0'
        )
    guilty, *others = worker.chunks
    if len(guilty.items) > 1:
        guilty.parts = [_Chunk([item]) for item in guilty.items]
        return guilty.parts + others
    guilty.deaths += 1
    if guilty.deaths < TRIES:
        return [guilty, *others]
    guilty.results = [Crash(exit_code)]
    return others


def _serve(function: Callable[[Item], Result], connection: Connection) -> None:
    """What a worker does until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who asks is interrupted, and ends us
    connection.send(READY)
    while True:
        try:
            items = connection.recv()
        except (EOFError, OSError):  # reset, where the one who asks was killed
            return
        results = [function(item) for item in items]
        try:
            connection.send(results)
        except OSError:
            return
