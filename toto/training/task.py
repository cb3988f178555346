"""The contract between the training loop and what is trained: a Task is a batch in, a loss out.

The loop and the engines know neither model nor data; they call `forward`, `num_targets`,
`at_step`, `meet` and `compile_blocks`, and read the roles and rates of the parameters.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import Tensor, nn

from toto.registry import Implementation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from toto.backbones.base import ParamRole
    from toto.training.config import OptimizerConfig
    from toto.training.distributed import Ranks

__all__ = ["Mean", "Task", "TaskOutput", "sum_metrics"]


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
        """`total / count`; NaN where nothing was counted."""
        return self.total / self.count


def sum_metrics(parts: Iterable[dict[str, Mean]]) -> dict[str, Mean]:
    """The metrics of several batches as those of one: means weigh by their counts."""
    summed: dict[str, Mean] = {}
    for part in parts:
        for name, mean in part.items():
            summed[name] = summed[name] + mean if name in summed else mean
    return summed


@dataclass(frozen=True)
class TaskOutput:
    """What a task says of one micro-batch.

    Attributes:
        loss: the mean over the batch's targets, differentiable: what is minimised.
        metrics: detached; the scalar "loss" among them is the loss that runs report.
    """

    loss: Tensor
    metrics: dict[str, Mean]


B = TypeVar("B")


class Task(nn.Module, Implementation, Generic[B]):
    """What the engine wraps: a module over a trainable part and, perhaps, frozen ones."""

    @property
    @abstractmethod
    def trainable(self) -> nn.Module:
        """The part that is trained and that checkpoints hold; everything else is frozen."""

    @abstractmethod
    def forward(self, batch: B) -> TaskOutput:
        """Loss and metrics of one micro-batch."""

    @abstractmethod
    def num_targets(self, batch: B) -> int:
        """How many targets `loss` is the mean of: the micro-batch's weight in its step."""

    def is_padding(self, batch: B) -> bool:
        """Whether its metrics count nothing: it only keeps this rank in step with the others."""
        return self.num_targets(batch) == 0

    @abstractmethod
    def param_roles(self) -> dict[str, ParamRole]:
        """The role of every parameter of `trainable`, by its name in `named_parameters()`."""

    def lr_scales(self, optimizer: OptimizerConfig) -> dict[str, float]:
        """Factors on the schedule's rate, by the name of the parameter; those not named have 1."""
        return {}

    @property
    def width_ratio(self) -> float:
        """M of µP, by which the rate of hidden matrices is divided; 1 where there is none."""
        return 1.0

    @property
    def clipped_apart(self) -> tuple[str, ...]:
        """Beginnings of names of parameters whose gradients are clipped apart from all others."""
        return ()

    @property
    def can_be_parted(self) -> bool:
        """Whether each rank may hold a part of the weights alone.

        So it is where only the modules that own them read them, and only the optimizer sets them.
        """
        return True

    def compile_blocks(self) -> None:
        """Compile the costly parts in place, block by block; a task that has none stays eager.

        The keys of `trainable.state_dict()` must not change. Whole models are not compiled:
        that is not deterministic on a CPU.
        """
        return

    def meet(self, ranks: Ranks) -> None:
        """Called before a training on several ranks, which run their micro-batches side by side.

        A task that changes tensors itself, outside of the gradient, makes them equal on all.
        """
        return

    def at_step(self, step: int) -> None:
        """Called before each optimizer step (from 0); schedules of the loss read it."""
        return
