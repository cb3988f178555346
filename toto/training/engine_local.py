"""The engine of one process on one device: a CPU or one GPU."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Generic, Literal

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from toto.training.checkpoint import check_tensors, unshared_tensors
from toto.training.distributed import Ranks
from toto.training.engine import B, EngineState, StepResult
from toto.training.nonfinite import non_finite
from toto.training.optim import (
    build_optimizer,
    clip_sets,
    expected_slots,
    load_optimizer_tensors,
    optimizer_tensors,
)
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
            task.trainable,
            task.param_roles(),
            optimizer,
            width_ratio=task.width_ratio,
            lr_scales=task.lr_scales(optimizer),
            clipped_apart=task.clipped_apart,
        )
        self._grad_clip = optimizer.grad_clip
        self._schedule = schedule
        self._device = device
        self._bf16 = precision == "bf16"
        self._steps_done = 0
        self._updating = False

    @property
    def steps_done(self) -> int:
        """See `Engine.steps_done`."""
        return self._steps_done

    @property
    def is_whole(self) -> bool:
        """See `Engine.is_whole`."""
        return not self._updating

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
        clipped = clip_sets(self._optimizer)
        norms = [
            get_total_norm([p.grad for p in members if p.grad is not None]) for members in clipped
        ]
        *loss_parts, grad_norm = torch.stack([*losses, get_total_norm(norms)]).tolist()
        if not math.isfinite(sum(loss_parts)) or not math.isfinite(grad_norm):
            self._optimizer.zero_grad()
            raise non_finite(self._steps_done, micro_batches, loss_parts, Ranks())
        for members, norm in zip(clipped, norms, strict=True):
            clip_grads_with_norm_(members, self._grad_clip, norm)
        lr = self._schedule(self._steps_done)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self._updating = True
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._steps_done += 1
        self._updating = False
        return StepResult(sum(loss_parts), grad_norm, lr, sum_metrics(metrics), sum(counts))

    def evaluate(self, batch: B) -> dict[str, Mean]:
        """See `Engine.evaluate`."""
        self._task.eval()
        try:
            with torch.no_grad(), self._autocast():
                output = self._task(batch.to(self._device))
        finally:
            self._task.train()
        return {} if self._task.is_padding(batch) else dict(output.metrics)

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
        parameters = dict(self._task.trainable.named_parameters())
        slots = expected_slots(parameters, state.optimizer)
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

    def close(self) -> None:
        """See `Engine.close`."""

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16)
