"""Writing checkpoints: every rank its part, the first rank the whole; behind the steps or not.

    RUN/checkpoints/step-00000500.partial/       becomes step-00000500/ by one rename
        model.safetensors                        of rank 0
        optimizer-00000-of-00002.safetensors     of rank 0
        optimizer-00001-of-00002.safetensors     of rank 1
        rank-00001.done                          what rank 1 has written, or why it could not
        checkpoint.json                          of rank 0, once all the others are done
    RUN/checkpoints/step-00000500.failed.partial why rank 0 gave the checkpoint up, for the others

The ranks speak through these files alone: a collective in a thread would meet those of the steps.
"""

from __future__ import annotations

import math
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import save_file

from toto.errors import RunError
from toto.files import PARTIAL, disk_errors, sync, write_atomic
from toto.registry import Config
from toto.training.checkpoint import (
    LATEST,
    META_FILE,
    MODEL_FILE,
    FileRecord,
    complete_checkpoints,
    discard,
    remove_partial,
)
from toto.training.engine import EngineState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from torch import Tensor

    from toto.training.checkpoint import CheckpointMeta
    from toto.training.config import TrainingConfig

__all__ = ["BackgroundWriter", "CheckpointWriter", "open_writer"]

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
# Once this rank ends by an error the others may be gone as well.
GRACE = timedelta(seconds=30)
POLL_SECONDS = 0.05


def open_writer(
    folder: Path, settings: TrainingConfig, *, rank: int = 0, world: int = 1
) -> CheckpointWriter:
    """The writer that the settings ask for; enter it before the first step.

    Args:
        folder: a run's `checkpoints/`, which all ranks see.
        settings: how, and how many are kept.
        rank: of this process.
        world: number of ranks.
    """
    kind = BackgroundWriter if settings.background_save else CheckpointWriter
    return kind(
        folder=folder,
        keep=settings.keep,
        keep_every=settings.keep_every,
        rank=rank,
        world=world,
    )


@dataclass(kw_only=True)
class CheckpointWriter:
    """The plain way: training waits until the checkpoint is on the disk, whole.

    Every rank has one and saves the same steps. Enter it before the first step: it removes what a
    killed process left half written. Leaving it waits for what is being written, so that a run
    ends with whole checkpoints only.

    Attributes:
        folder: a run's `checkpoints/`, which all ranks see.
        keep: the newest checkpoints, so many, are kept.
        keep_every: so are those whose step it divides; None: no more.
        rank: of this process.
        world: number of ranks.
        timeout: how long a rank waits for the others' parts.
    """

    folder: Path
    keep: int
    keep_every: int | None = None
    rank: int = 0
    world: int = 1
    timeout: timedelta = PATIENCE
    _give_up_at: float = field(default=math.inf, init=False)

    def __enter__(self) -> Self:
        if self.rank == 0:
            with disk_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                remove_partial(self.folder)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            return  # the second signal ends a run at once; the half has a name that says so
        if error is not None:
            self._give_up_at = time.monotonic() + GRACE.total_seconds()
        try:
            self.drain()
        except RunError as failure:
            if error is None:
                raise
            error.add_note(str(failure))

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be saved; the next `save` or `drain` raises why."""
        return False

    def save(self, state: EngineState, meta: CheckpointMeta) -> Path:
        """Save a step: `state.model` on rank 0, and this rank's share of the optimizer.

        Returns:
            The folder of the checkpoint.

        Raises:
            RunError: a disk is full or refuses, or a rank did not deliver; this checkpoint's or,
                where it is written behind the steps, the one's before. The message names the last
                good one, which stands. What was half written is removed.
        """
        target = self._path(meta.step)
        unfinished = target.with_name(target.name + PARTIAL)
        try:
            unfinished.mkdir(parents=True, exist_ok=True)
            files = self._write(unfinished, state)
            if self.rank == 0:
                files |= self._parts_of_others(unfinished)
                self._publish(unfinished, target, meta.model_copy(update={"files": files}))
            else:
                _Part(files=files).write(unfinished, self.rank)
                self._wait_for(target)
        except (OSError, SafetensorError, _UndeliveredError) as error:
            message = self._message(state, meta, error)
            self._clean_up(unfinished, target, message if self.rank == 0 else str(error))
            raise RunError(message) from error
        return target

    def drain(self) -> None:
        """Wait until everything is saved.

        Raises:
            RunError: see `save`.
        """
        return

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _write(self, unfinished: Path, state: EngineState) -> dict[str, FileRecord]:
        """This rank's files, synced and read back for their checksums."""
        share = f"optimizer-{self.rank:05d}-of-{self.world:05d}.safetensors"
        parts = {share: state.optimizer}
        if self.rank == 0:
            parts = {MODEL_FILE: state.model} | parts
        for name, tensors in parts.items():
            file = unfinished / name
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
            sync(file)
        return {name: FileRecord.of(unfinished / name) for name in parts}

    def _parts_of_others(self, unfinished: Path) -> dict[str, FileRecord]:
        files: dict[str, FileRecord] = {}
        for rank in range(1, self.world):
            taken = partial(_Part.taken, unfinished, rank)
            part = self._wait(taken, self.timeout, f"rank {rank} did not deliver")
            if part.error is not None:
                raise _UndeliveredError(f"rank {rank}: {part.error}")
            files |= part.files
        return files

    def _publish(self, unfinished: Path, target: Path, meta: CheckpointMeta) -> None:
        write_atomic(unfinished / META_FILE, meta.model_dump_json(indent=1) + "\n")
        if target.exists():  # a save that was killed before it moved `latest`
            discard(target)
        unfinished.rename(target)
        sync(self.folder)
        write_atomic(self.folder / LATEST, target.name + "\n")
        kept_for_good = set()
        if self.keep_every is not None:
            kept_for_good = {self._path(step) for step in range(0, meta.step, self.keep_every)}
        for old in complete_checkpoints(self.folder)[: -self.keep]:
            if old not in kept_for_good:
                discard(old)

    def _wait_for(self, target: Path) -> None:
        """Until rank 0 has published it, or given it up."""

        def outcome() -> str | None:
            if target.exists():
                return ""
            failure = _failure_file(target)
            return failure.read_text(encoding="utf-8") if failure.exists() else None

        # Rank 0 itself may wait that long for others.
        if refusal := self._wait(outcome, 2 * self.timeout, "rank 0 did not publish it"):
            raise RunError(refusal)

    def _wait(self, found: Callable[[], T | None], timeout: timedelta, otherwise: str) -> T:
        begun = time.monotonic()
        until = begun + timeout.total_seconds()
        while (value := found()) is None:
            if time.monotonic() > min(until, self._give_up_at):
                raise _UndeliveredError(f"{otherwise} within {time.monotonic() - begun:.0f} s")
            time.sleep(POLL_SECONDS)
        return value

    def _clean_up(self, unfinished: Path, target: Path, reason: str) -> None:
        """Make room, then tell the other ranks. A disk that fails may well refuse this too."""
        if self.rank == 0:
            shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):
            if self.rank > 0:
                for name in unfinished.glob(f"*-{self.rank:05d}-of-*"):
                    name.unlink()
                _Part(error=reason).write(unfinished, self.rank)
            elif self.world > 1:
                write_atomic(_failure_file(target), reason)

    def _message(self, state: EngineState, meta: CheckpointMeta, error: Exception) -> str:
        good = complete_checkpoints(self.folder)
        stands = (
            f"{good[-1]} stands, and only the steps since are lost"
            if good
            else "there is no earlier checkpoint"
        )
        what = f"the checkpoint of step {meta.step} could not be saved in {self.folder}: {error}"
        if isinstance(error, _UndeliveredError):
            return f"{what}; {stands}. Mend what that rank reports, then go on with --resume"
        tensors = [*state.model.values(), *state.optimizer.values()]
        needed = sum(tensor.nbytes for tensor in tensors) / 1e6
        free = shutil.disk_usage(self.folder).free / 1e6
        return (
            f"{what}. It needs {needed:,.1f} MB, the disk has {free:,.1f} MB free; {stands}. "
            "Make room, then go on with --resume"
        )


@dataclass(kw_only=True)
class BackgroundWriter(CheckpointWriter):
    """Training waits for a copy to host memory alone; a thread writes it behind the next steps.

    At most one checkpoint is being written: the next `save` waits for it. The host buffers, which
    cost the memory of this rank's part once more, are made by the first save and used again; those
    of a GPU's tensors are pinned, and torch rounds each pinned one up to a power of two bytes.
    """

    _buffers: _HostBuffers = field(default_factory=lambda: _HostBuffers(), init=False)
    _writing: _Work | None = field(default=None, init=False)

    @property
    def failed(self) -> bool:
        """See `CheckpointWriter.failed`."""
        return self._writing is not None and self._writing.failure is not None

    def save(self, state: EngineState, meta: CheckpointMeta) -> Path:
        """See `CheckpointWriter.save`; returns when the tensors may change."""
        self.drain()
        self._writing = _Work(partial(super().save, self._buffers.copy(state), meta))
        self._writing.start()
        return self._path(meta.step)

    def drain(self) -> None:
        """See `CheckpointWriter.drain`."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.join()
            if writing.failure is not None:
                raise writing.failure


class _Work(threading.Thread):
    """A call in a thread that does not outlive the process, and the exception it ended with."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self._call = call
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._call()
        except BaseException as error:  # the main thread raises it
            self.failure = error


class _HostBuffers:
    """Tensors in host memory that hold a state while the live one moves on."""

    def __init__(self) -> None:
        self._model: dict[str, Tensor] = {}
        self._optimizer: dict[str, Tensor] = {}

    def copy(self, state: EngineState) -> EngineState:
        """The same state in the buffers, until the next call."""
        self._model = _filled(self._model, state.model)
        self._optimizer = _filled(self._optimizer, state.optimizer)
        tensors = [*state.model.values(), *state.optimizer.values()]
        for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return EngineState(state.steps_done, self._model, self._optimizer)


def _filled(buffers: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors copied into the buffer of their name, which is made where there is none."""
    filled = {}
    for name, tensor in tensors.items():
        buffer = buffers.get(name)
        if buffer is None:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        filled[name] = buffer.copy_(tensor, non_blocking=True)
    return filled


class _UndeliveredError(Exception):
    """A rank did not do its part in time, or said why it could not."""


class _Part(Config):
    """rank-RRRRR.done: the files of a rank, or why there are none."""

    files: dict[str, FileRecord] = Field(default_factory=dict)
    error: str | None = None

    def write(self, unfinished: Path, rank: int) -> None:
        write_atomic(_done_file(unfinished, rank), self.model_dump_json())

    @classmethod
    def taken(cls, unfinished: Path, rank: int) -> _Part | None:
        """What the rank wrote, whose file is removed; None until it has."""
        path = _done_file(unfinished, rank)
        if not path.exists():
            return None
        part = cls.model_validate_json(path.read_bytes())
        path.unlink()
        return part


def _done_file(unfinished: Path, rank: int) -> Path:
    return unfinished / f"rank-{rank:05d}.done"


def _failure_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.failed{PARTIAL}")
