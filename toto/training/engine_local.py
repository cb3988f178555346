"""The engine of one process on one device: a CPU or one GPU."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Generic, Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from toto.errors import RunError
from toto.training.checkpoint import check_tensors, unshared_tensors
from toto.training.engine import B, EngineState, StepResult
from toto.training.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors
from toto.training.task import Mean, Task, sum_metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from toto.training.config import OptimizerConfig

__all__ = ["LocalEngine"]


class LocalEngine(Generic[B]):
    """Weights and optimizer state in fp32; bf16 by autocast around the forward pass alone.

    Args:
        task: moved to `device`; the parameters of its trainable part are optimised.
        optimizer: AdamW's settings and the largest gradient norm.
        schedule: step, from 0, → learning rate.
        device: where everything is computed.
        precision: of the forward pass's matrix products.
    """

    def __init__(
        self,
        task: Task[B],
        optimizer: OptimizerConfig,
        schedule: Callable[[int], float],
        *,
        device: torch.device,
        precision: Literal["fp32", "bf16"],
    ) -> None:
        self._task = task.to(device).train()
        self._optimizer = build_optimizer(
            task.trainable, task.param_roles(), optimizer, width_ratio=task.width_ratio
        )
        self._grad_clip = optimizer.grad_clip
        self._schedule = schedule
        self._device = device
        self._bf16 = precision == "bf16"
        self._steps_done = 0

    @property
    def steps_done(self) -> int:
        """See `Engine.steps_done`."""
        return self._steps_done

    def step(self, micro_batches: Sequence[B]) -> StepResult:
        """See `Engine.step`.

        The host reads the losses and the gradient norm once, between the backward pass and the
        optimizer: a stop before the step cannot be had for less, and the device still computes
        the optimizer step while the host prepares the next forward pass.
        """
        self._task.at_step(self._steps_done)
        counts = [self._task.num_targets(batch) for batch in micro_batches]
        losses, metrics = [], []
        for batch, count in zip(micro_batches, counts, strict=True):
            with self._autocast():
                output = self._task(batch.to(self._device))
            loss = output.loss * (count / sum(counts))
            loss.backward()
            losses.append(loss.detach())
            if count:
                metrics.append(output.metrics)
        grads = [p.grad for p in self._parameters() if p.grad is not None]
        norm = get_total_norm(grads)
        *loss_parts, grad_norm = torch.stack([*losses, norm]).tolist()
        if not math.isfinite(sum(loss_parts)) or not math.isfinite(grad_norm):
            self._optimizer.zero_grad()
            raise RunError(_non_finite(self._steps_done, micro_batches, loss_parts))
        clip_grads_with_norm_(self._parameters(), self._grad_clip, norm)
        lr = self._schedule(self._steps_done)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._steps_done += 1
        return StepResult(sum(loss_parts), grad_norm, lr, sum_metrics(metrics), sum(counts))

    def evaluate(self, batch: B) -> dict[str, Mean]:
        """See `Engine.evaluate`."""
        self._task.eval()
        try:
            with torch.no_grad(), self._autocast():
                output = self._task(batch.to(self._device))
        finally:
            self._task.train()
        return dict(output.metrics) if self._task.num_targets(batch) else {}

    def state(self) -> EngineState:
        """See `Engine.state`."""
        return EngineState(
            self._steps_done,
            unshared_tensors(self._task.trainable),
            optimizer_tensors(self._optimizer),
        )

    def load_state(self, state: EngineState) -> None:
        """See `Engine.load_state`."""
        model = unshared_tensors(self._task.trainable)
        check_tensors(model, state.model, "weights")
        slots = _expected_slots(self._optimizer, state.optimizer)
        check_tensors(slots, state.optimizer, "optimizer state")
        with torch.no_grad():
            for name, tensor in model.items():
                tensor.copy_(state.model[name])
        load_optimizer_tensors(self._optimizer, state.optimizer)
        self._steps_done = state.steps_done
        self._task.at_step(max(state.steps_done - 1, 0))  # as an evaluation would find it

    def compile(self) -> None:
        """See `Engine.compile`."""
        self._task.compile_blocks()

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16)


def _expected_slots(
    optimizer: torch.optim.Optimizer, found: dict[str, Tensor]
) -> dict[str, Tensor]:
    """AdamW's tensors for every parameter that has had a gradient, by name, for their shapes."""
    started = {key.rpartition(".")[0] for key in found}
    slots = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if name in started:
                slots[f"{name}.exp_avg"] = slots[f"{name}.exp_avg_sq"] = parameter
                slots[f"{name}.step"] = parameter.new_empty(())
    return slots


def _non_finite(step: int, micro_batches: Sequence[B], losses: list[float]) -> str:
    """The message: the micro-batches whose loss is not finite, or all if only the gradient is."""
    pairs = list(zip(micro_batches, losses, strict=True))
    bad = [batch for batch, loss in pairs if not math.isfinite(loss)]
    what = "loss" if bad else "gradient"
    named = bad or list(micro_batches)
    positions = _ranges(sorted(p for batch in named for p in batch.position_B.tolist()))
    sources = _ranges(sorted({s for batch in named for s in batch.source_B.tolist()}))
    return (
        f"step {step}: the {what} is not finite. Samples: positions {positions} of the stream, "
        f"sources {sources} (counted from 0). The weights are still those before the step, and "
        "the checkpoints stand. Lower optimizer.lr, lengthen schedule.warmup_steps, or set "
        "training.precision to fp32; if one sample is to blame, look at it"
    )


def _ranges(numbers: list[int]) -> str:
    """Sorted integers in short: [3, 4, 5, 9] → "3-5, 9"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
