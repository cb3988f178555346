"""Writing checkpoints: every rank its part, the first rank the whole.

    RUN/checkpoints/step-00000500.partial/       becomes step-00000500/ by one rename
        model.safetensors                        of rank 0
        optimizer-00000-of-00002.safetensors     of rank 0
        optimizer-00001-of-00002.safetensors     of rank 1
        rank-00001.done                          what rank 1 has written, or why it could not
        checkpoint.json                          of rank 0, once all the others are done
    RUN/checkpoints/step-00000500.failed.partial why rank 0 gave the checkpoint up, for the others

The ranks speak through these files alone: a collective in the thread that checkpoint_background.py
writes in would meet those of the steps.
"""

from __future__ import annotations

import math
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import save_file

from toto.errors import RunError
from toto.files import PARTIAL, apply_umask, disk_errors, sync, write_atomic
from toto.registry import Config
from toto.training.checkpoint import LATEST, MODEL_FILE, FileRecord, discard, remove_partial
from toto.training.checkpoint_folder import META_FILE, complete_checkpoints, folder_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from toto.training.checkpoint import CheckpointMeta
    from toto.training.engine import EngineState

__all__ = ["CheckpointWriter"]

T = TypeVar("T")

# Once this rank ends by an error the others may be gone as well.
GRACE = timedelta(seconds=60)
POLL_SECONDS = 0.05


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
    timeout: timedelta = timedelta(minutes=30)
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
        unfinished = _unfinished(target)
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
            raise RunError(self._given_up(state, meta, error)) from error
        return target

    def drain(self) -> None:
        """Wait until everything is saved.

        Raises:
            RunError: see `save`.
        """
        return

    def _path(self, step: int) -> Path:
        return self.folder / folder_name(step)

    def _write(self, unfinished: Path, state: EngineState) -> dict[str, FileRecord]:
        """This rank's files, synced and read back for their checksums."""
        share = f"optimizer-{self.rank:05d}-of-{self.world:05d}.safetensors"
        parts = {share: state.optimizer}
        if self.rank == 0:
            parts = {MODEL_FILE: state.model} | parts
        for name, tensors in parts.items():
            file = unfinished / name
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
            apply_umask(file)
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
        """Until rank 0 has published it, `latest` included.

        Raises:
            RunError: rank 0 has given it up.
        """

        def outcome() -> str | None:
            published = target.exists() and _newest(self.folder) == target.name
            return "" if published else _refusal(target)

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

    def _given_up(self, state: EngineState, meta: CheckpointMeta, error: Exception) -> str:
        """Remove what is half written and tell the other ranks; the message for the user."""
        target = self._path(meta.step)
        unfinished = _unfinished(target)
        if self.world == 1:
            shutil.rmtree(unfinished, ignore_errors=True)
            return self._message(state, meta, error)
        message = self._message(state, meta, error)
        if self.rank == 0:
            _refuse(target, message)  # first, so that they know why the folder goes
            shutil.rmtree(unfinished, ignore_errors=True)
            if _refusal(target) is None:
                _refuse(target, message)  # now there is room
            return message
        for file in unfinished.glob(f"*-{self.rank:05d}-of-*"):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # as in _refuse
            _Part(error=str(error)).write(unfinished, self.rank)
        return _refusal(target) or message

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


class _UndeliveredError(Exception):
    """A rank did not do its part in time, or said why it could not."""


class _Part(Config):
    """rank-RRRRR.done: the files of a rank, or why there are none."""

    files: dict[str, FileRecord] = Field(default_factory=dict)
    error: str | None = None

    def write(self, unfinished: Path, rank: int) -> None:
        """Leave it for rank 0, which may rename the folder the moment that it stands there.

        So nothing is synced after that: a crash leaves a half checkpoint in any case.
        """
        file = _done_file(unfinished, rank)
        begun = file.with_name(f".{file.name}{PARTIAL}")
        begun.write_text(self.model_dump_json(), encoding="utf-8")
        begun.replace(file)

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


def _unfinished(target: Path) -> Path:
    return target.with_name(target.name + PARTIAL)


def _newest(folder: Path) -> str | None:
    """The name in `latest`; None before the first checkpoint."""
    file = folder / LATEST
    return file.read_text(encoding="utf-8").strip() if file.exists() else None


def _failure_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.failed{PARTIAL}")


def _refuse(target: Path, why: str) -> None:
    """Leave word for the other ranks; without it they wait for the timeout."""
    with suppress(OSError):  # the disk that made the checkpoint fail may refuse this too
        write_atomic(_failure_file(target), why)


def _refusal(target: Path) -> str | None:
    """What rank 0 has left word of."""
    file = _failure_file(target)
    return file.read_text(encoding="utf-8") if file.exists() else None
