"""The contract between the training loop and what is trained: a Task is a batch in, a loss out.

The loop and the engines know neither model nor data; they call `forward`, `num_targets` and
`at_step`, and read the roles of the parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor, nn

from toto.backbones.base import ParamRole

__all__ = ["Mean", "Task", "TaskOutput"]


@dataclass(frozen=True)
class Mean:
    """A mean that adds up exactly over micro-batches, ranks and padding: `total / count`.

    Both are float64 tensors of one shape: scalars, or one entry per frame, source or class.
    """

    total: Tensor
    count: Tensor

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> Tensor:
        """total / count; NaN where nothing was counted."""
        return self.total / self.count


@dataclass(frozen=True)
class TaskOutput:
    """`loss`: the mean over this batch's targets, differentiable. `metrics`: detached."""

    loss: Tensor
    metrics: dict[str, Mean]


B = TypeVar("B")


class Task(nn.Module, ABC, Generic[B]):
    """What the engine wraps. Frozen parts (a tokenizer) are kept out of `parameters()`' grads."""

    @abstractmethod
    def forward(self, batch: B) -> TaskOutput:
        """Loss and metrics of one micro-batch."""

    @abstractmethod
    def num_targets(self, batch: B) -> int:
        """How many targets `loss` is the mean of: the micro-batch's weight in its step."""

    @abstractmethod
    def param_roles(self) -> dict[str, ParamRole]:
        """The role of every trainable parameter, by its name in `named_parameters()`."""

    def at_step(self, step: int) -> None:
        """Called before each optimizer step (from 0); schedules of the loss read it."""
        return
