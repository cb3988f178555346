"""The contract of an engine: it owns the weights, the optimizer and the device; the loop does not.

`LocalEngine` is one process on one device, `DeepSpeedEngine` any number of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from toto.training.task import Mean

__all__ = ["Engine", "EngineState", "StepResult", "StreamBatch"]


class StreamBatch(Protocol):
    """All that an engine asks of a batch: to move, and to name its samples in an error."""

    @property
    def position_B(self) -> Tensor:
        """Global position in the stream of each sequence."""

    @property
    def source_B(self) -> Tensor:
        """Index into the recipe's sources of each sequence."""

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step.

    Attributes:
        loss: what was minimised, the mean over all targets of the step, on all ranks.
        grad_norm: norm of the whole gradient, without that of probes, before it was clipped.
        lr: the learning rate of the step.
        metrics: the task's, summed over this rank's micro-batches, still on the device.
        num_targets: targets of the step, of all ranks.
    """

    loss: float
    grad_norm: float
    lr: float
    metrics: dict[str, Mean]
    num_targets: int


@dataclass(frozen=True)
class EngineState:
    """All that the next step depends on, by parameter name: the same for every engine.

    Attributes:
        steps_done: optimizer steps so far.
        model: the state dict of the task's trainable part, weights in fp32; when an engine gives
            it, on the first rank alone, and empty on others.
        optimizer: `<parameter>.<slot>` → whole tensor; when an engine gives it, those of the
            parameters that fall to this rank. The ranks' dictionaries together hold all, each once.
    """

    steps_done: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


B = TypeVar("B", bound=StreamBatch)
B_contra = TypeVar("B_contra", bound=StreamBatch, contravariant=True)


class Engine(Protocol[B_contra]):
    """Trains a task step by step."""

    @property
    def steps_done(self) -> int:
        """Optimizer steps so far; the next one has this number."""

    @property
    def is_whole(self) -> bool:
        """Whether the state is that of `steps_done`: not while an update is under way, or broke."""

    def step(self, micro_batches: Sequence[B_contra]) -> StepResult:
        """One optimizer step on the mean over the targets of all ranks' micro-batches.

        Raises:
            NonFiniteError: the loss or the gradient is not; the weights are as before.
        """

    def evaluate(self, batch: B_contra) -> dict[str, Mean]:
        """The task's metrics in evaluation mode, without a gradient; none of padding.

        All ranks call it equally often.
        """

    def state(self) -> EngineState:
        """What a checkpoint holds: this rank's part of it. All ranks call it together.

        The tensors may be the live ones, not copies.
        """

    def load_state(self, state: EngineState) -> None:
        """Go on from `state`, which is whole on every rank, from whatever engine it came.

        Raises:
            CheckpointError: names or shapes differ; each difference is named.
        """

    def compile(self) -> None:
        """Compile the task by block, in place."""

    def close(self) -> None:
        """Release what the engine holds beside its tensors; nothing else works afterwards."""
