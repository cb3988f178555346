"""Checkpoints behind the steps: training waits for a copy in host memory, and goes on."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import torch

from toto.training.checkpoint_writer import CheckpointWriter
from toto.training.engine import EngineState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from toto.training.checkpoint import CheckpointMeta
    from toto.training.config import TrainingConfig
    from toto.training.distributed import Ranks

__all__ = ["BackgroundWriter", "open_writer"]


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


@dataclass(kw_only=True)
class BackgroundWriter(CheckpointWriter):
    """Training waits for a copy to host memory alone; a thread writes it behind the next steps.

    At most one checkpoint is being written: the next `save` waits for it. The host buffers, which
    cost the memory of this rank's part once more, are made by the first save and used again; those
    of a GPU's tensors are pinned, and torch rounds each pinned one up to a power of two bytes.
    """

    _buffers: _HostBuffers = field(default_factory=_HostBuffers, init=False)
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


def open_writer(folder: Path, settings: TrainingConfig, ranks: Ranks) -> CheckpointWriter:
    """The writer that the settings ask for; enter it before the first step.

    Args:
        folder: a run's `checkpoints/`, which all ranks see.
        settings: how, how many are kept, and how long ranks wait for each other.
        ranks: this process and the others of the run.
    """
    kind = BackgroundWriter if settings.background_save else CheckpointWriter
    return kind(
        folder=folder,
        keep=settings.keep,
        keep_every=settings.keep_every,
        rank=ranks.rank,
        world=ranks.world,
        timeout=timedelta(minutes=settings.timeout_minutes),
    )
