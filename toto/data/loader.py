"""Positions of a stream to batches, in this process or in workers, in the same order."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset

from toto.data.batch import Batch
from toto.data.ranks import micro_batches, share
from toto.data.stream import DrawnSequence, SourceStream, Stream
from toto.errors import DataError, RunError
from toto.processes import end_with_parent, exit_text

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from multiprocessing.process import BaseProcess

    from toto.data.config import ClipConfig
    from toto.data.index import Dataset

__all__ = ["BrokenUnit", "collate", "evaluation_batches", "training_batches"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

# The allowed share of broken units is taken of at least so many drawn ones, so that an early
# failure does not stop a run.
MIN_DRAWN = 1_000


def collate(sequences: Sequence[DrawnSequence]) -> Batch:
    """One Batch of sequences of one form."""
    return _Parcel.of(sequences).batch()


@dataclass(frozen=True)
class _Parcel:
    """A batch as it travels between processes: pixels, or codes as stored, in shared memory.

    All else is plain lists: each tensor would cost a file of its own.
    """

    frames: Tensor
    is_image_B: list[bool]
    source_B: list[int]
    position_B: list[int]
    label_BT: list[list[int]]
    padding: bool = False

    @classmethod
    def of(cls, sequences: Sequence[DrawnSequence]) -> _Parcel:
        frames = np.stack([sequence.frames for sequence in sequences])
        if frames.dtype == np.uint8:
            frames = np.ascontiguousarray(np.moveaxis(frames, -1, 2))
        return cls(
            torch.from_numpy(frames),
            [sequence.is_image for sequence in sequences],
            [sequence.source for sequence in sequences],
            [sequence.position for sequence in sequences],
            [
                list(sequence.frame_labels) or [sequence.label] * len(sequence.frames)
                for sequence in sequences
            ],
        )

    def batch(self) -> Batch:
        is_pixels = self.frames.dtype == torch.uint8
        return Batch(
            pixels_BTCHW=self.frames if is_pixels else None,
            codes_BTHW=None if is_pixels else self.frames.long(),
            is_image_B=torch.tensor(self.is_image_B),
            source_B=torch.tensor(self.source_B),
            position_B=torch.tensor(self.position_B),
            label_B=torch.tensor([labels[0] for labels in self.label_BT]),
            padding=self.padding,
            label_BT=torch.tensor(self.label_BT),
        )


def training_batches(
    stream: Stream,
    *,
    batch_sequences: int,
    micro_batch: int,
    workers: int,
    start_step: int,
    stop_step: int,
    max_broken: float = 0.01,
    rank: int = 0,
    world: int = 1,
    on_broken: Callable[[BrokenUnit], None] = lambda broken: None,
) -> Generator[list[Batch], None, None]:
    """Yield the batches of steps start_step to stop_step-1, each as a list of micro-batches.

    Step s holds the positions s·B to (s+1)·B-1. The number of workers changes nothing but speed.
    The workers end when the generator is closed, or with the process.

    Args:
        stream: of the mixture.
        batch_sequences: B of a step, of all ranks together.
        micro_batch: B of each micro-batch; the last of a step may be smaller.
        workers: processes that load ahead; 0 loads in this one.
        start_step: the first; a run resumes here.
        stop_step: one past the last.
        max_broken: share of undecodable units, counted from start_step, that stops the run.
        rank: whose share of each step this is; see `toto.data.ranks`.
        world: number of ranks. All have as many micro-batches; the last may be padding.
        on_broken: told of every unit that was replaced, when its step is handed over.

    Raises:
        DataError: more units than that cannot be decoded, or the shards are damaged.
        RunError: a loader process died.
    """
    steps: DataLoader[_Step | DataError] = DataLoader(
        _Steps(stream, batch_sequences, micro_batch, rank, world),
        batch_size=None,
        sampler=range(start_step, stop_step),
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_init_worker,
        # Its own generator: an iterator would else take a number from the run's.
        generator=torch.Generator(),
    )
    budget = _BrokenBudget(max_broken)
    with closing(_from_workers(steps)) as loaded:
        for step in loaded:
            if isinstance(step, DataError):
                raise step
            for broken in step.broken:
                on_broken(broken)
            budget.count(step.drawn, [broken.what for broken in step.broken])
            yield [parcel.batch() for parcel in step.parcels]


def _from_workers(loader: DataLoader[T]) -> Generator[T, None, None]:
    """Yield what a loader loads, and look at its processes after each item.

    Raises:
        RunError: a process died, whether its items are waited for or not.
    """
    before = set(multiprocessing.active_children())
    on_death = signal.getsignal(signal.SIGCHLD)
    items = iter(loader)
    workers = [child for child in multiprocessing.active_children() if child not in before]
    if workers and threading.current_thread() is threading.main_thread():
        # Torch's handler raises wherever the process is, in the middle of an update for example.
        signal.signal(signal.SIGCHLD, on_death)
    # At exit multiprocessing sends SIGTERM and waits; workers ignore that (see `_init_worker`).
    end = Finalize(None, _kill, args=(workers,), exitpriority=10)
    try:
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except RuntimeError as error:
                _require_alive(workers, error)
                raise
            yield item
            _require_alive(workers)
    finally:
        end()


def _require_alive(workers: Sequence[BaseProcess], cause: RuntimeError | None = None) -> None:
    """Raise RunError if a process has died; one that has loaded all its items ends with 0."""
    for number, worker in enumerate(workers):
        if worker.exitcode:
            how = exit_text(worker.exitcode)
            raise RunError(
                f"loader process {number} (pid {worker.pid}) died ({how}): a file crashed its "
                "decoder, or memory ran out. Let `toto doctor DATASET --fix` leave the file out, "
                "or lower data.workers; then resume with --resume"
            ) from cause


def _kill(workers: Sequence[BaseProcess]) -> None:
    """End processes that only read, and so have nothing to lose."""
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()


def evaluation_batches(
    dataset: Dataset,
    clip: ClipConfig,
    *,
    micro_batch: int,
    count: int | None = None,
    source: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """`count` sequences spread evenly over a dataset, in its order, with centre crops.

    The batches are dealt to the ranks in turn; where they do not divide, those that lack one get
    the first again as padding.

    Args:
        dataset: opened.
        clip: what a sequence is cut to.
        micro_batch: B of each Batch; the last may be smaller.
        count: sequences, at most those of one epoch; None for all.
        source: number that the batches carry.
        rank: whose batches these are.
        world: number of ranks; all get as many.

    Raises:
        DataError: the dataset does not fit the clip, or a sample cannot be decoded: an evaluation
            replaces nothing.
    """
    stream = SourceStream.in_order(dataset, clip)
    total = stream.sequences_per_epoch
    count = total if count is None else min(count, total)

    def batch(first: int) -> Batch:
        numbers = [i * total // count for i in range(first, min(first + micro_batch, count))]
        return collate(stream.sequences(numbers, source=source, positions=numbers))

    firsts = range(0, count, micro_batch)
    yield from map(batch, firsts[rank::world])
    if rank >= len(firsts) % world > 0:
        yield replace(batch(0), padding=True)


@dataclass(frozen=True)
class BrokenUnit:
    """A unit that could not be decoded and was replaced: in which step, of which source's number.

    `what` is `dataset/key: reason`.
    """

    step: int
    source: int
    what: str


@dataclass(frozen=True)
class _Step:
    """What one step needs, and what was broken on the way."""

    parcels: list[_Parcel]
    drawn: int
    broken: tuple[BrokenUnit, ...]


class _Steps(MapDataset[_Step | DataError]):
    """Step number → its batches. Errors are handed over as values, to be raised in one place."""

    def __init__(
        self, stream: Stream, batch_sequences: int, micro_batch: int, rank: int, world: int
    ) -> None:
        self._stream = stream
        self._batch_sequences = batch_sequences
        self._micro_batch = micro_batch
        self._rank = rank
        self._world = world

    def __getitem__(self, step: int) -> _Step | DataError:
        positions = share(step, self._batch_sequences, rank=self._rank, world=self._world)
        try:
            sequences = self._stream.sequences(positions)
            padding = self._padding(step, len(positions))
        except DataError as error:
            return error
        return _Step(
            parcels=[
                _Parcel.of(sequences[i : i + self._micro_batch])
                for i in range(0, len(sequences), self._micro_batch)
            ]
            + padding,
            drawn=sum(sequence.drawn for sequence in sequences),
            broken=tuple(
                BrokenUnit(step, sequence.source, what)
                for sequence in sequences
                for what in sequence.broken
            ),
        )

    def _padding(self, step: int, sequences: int) -> list[_Parcel]:
        """What this rank lacks of the micro-batches of others: the step's first sequence again."""
        own = -(-sequences // self._micro_batch)
        lacking = micro_batches(self._batch_sequences, self._micro_batch, world=self._world) - own
        if not lacking:
            return []
        parcel = _Parcel.of(self._stream.sequences([step * self._batch_sequences]))
        return [replace(parcel, padding=True)] * lacking


class _BrokenBudget:
    """Counts undecodable units, names each once, and stops the run when they are too many."""

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._drawn = 0
        self._failures = 0
        self._names: dict[str, None] = {}

    def count(self, drawn: int, broken: Sequence[str]) -> None:
        self._drawn += drawn
        self._failures += len(broken)
        for name in broken:
            if name not in self._names:
                logger.warning("%s; another unit takes its place", name)
                self._names[name] = None
        if self._failures > self._max_share * max(self._drawn, MIN_DRAWN):
            raise DataError(
                f"{self._failures} of {self._drawn} units drawn cannot be decoded, more than "
                f"data.max_broken {self._max_share:g} allows: {_listed(list(self._names))}. Pack "
                "the folder again (toto pack SRC OUT --skip-broken), or raise data.max_broken"
            )


def _listed(names: list[str], limit: int = 10) -> str:
    more = f"; and {len(names) - limit} more" if len(names) > limit else ""
    return "; ".join(names[:limit]) + more


def _unchanged(step: Any) -> Any:
    """In place of the DataLoader's own conversion, which would look into the step."""
    return step


def _init_worker(worker: int) -> None:
    """One thread a worker; the signals of a whole process group are the run's to answer.

    They are all ignored: the run saves and then kills its workers, and the kernel does when the run
    has died.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(os.getppid())
