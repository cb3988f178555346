"""The engine of several ranks: DeepSpeed's ZeRO, stages 0 to 3, at any number of them.

DeepSpeed's defaults for gradients are its mean over ranks and micro-batches. Here every loss is
weighed by its targets over those of the whole step, times the ranks, so that the mean is the
gradient that one process would have, however the sequences are dealt.
"""

from __future__ import annotations

import importlib
import io
import logging
import math
import os
import warnings
from collections.abc import KeysView
from contextlib import ExitStack, contextmanager, redirect_stdout
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Generic

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from toto.errors import UserError
from toto.registry import nearest
from toto.training.checkpoint import check_tensors, unshared_tensors
from toto.training.deepspeed_settings import deepspeed_settings
from toto.training.engine import B, EngineState, StepResult
from toto.training.nonfinite import non_finite
from toto.training.optim import MOMENTS, build_optimizer, clip_sets, expected_slots
from toto.training.task import Mean, Task, sum_metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch.nn import Parameter

    from toto.training.config import OptimizerConfig, TrainingConfig
    from toto.training.distributed import Ranks
    from toto.training.zero_tensors import ZeroTensors

__all__ = ["DeepSpeedEngine", "balanced"]


class DeepSpeedEngine(Generic[B]):
    """Weights, gradients and optimizer state sharded over the ranks, as the ZeRO stage says.

    Weights are fp32 at every stage. In bf16 the forward pass runs under autocast, as
    `LocalEngine`'s does, so that norms, the residual stream and whatever else autocast leaves in
    fp32 is the same at every stage. It costs memory where DeepSpeed's own bf16 would have kept
    bf16 weights: see docs/plan.md.

    Args:
        task: its trainable part is wrapped; the rest is moved to the device.
        training: machine, precision, micro-batch and DeepSpeed's settings; nothing is `auto`.
        optimizer: AdamW's settings and the largest gradient norm.
        schedule: step, from 0, → learning rate.
        ranks: this process and the others, which make the same engine.

    Raises:
        UserError: DeepSpeed refuses its settings or ignores one, or the task cannot be parted.
    """

    def __init__(
        self,
        task: Task[B],
        training: TrainingConfig,
        optimizer: OptimizerConfig,
        schedule: Callable[[int], float],
        *,
        ranks: Ranks,
    ) -> None:
        stage = training.deepspeed.zero_stage
        if stage and not task.can_be_parted:
            raise UserError(
                f"training.deepspeed.zero_stage: {stage} parts the training among the ranks, and "
                f"{type(task).__name__} needs all weights whole on each, as the training of every "
                "tokenizer does. Write 0 in the recipe, or --set training.deepspeed.zero_stage=0"
            )
        task.meet(ranks)
        self._device = torch.device(training.device)
        self._task = task.to(self._device).train()
        self._adamw = build_optimizer(
            task.trainable,
            task.param_roles(),
            optimizer,
            width_ratio=task.width_ratio,
            lr_scales=task.lr_scales(optimizer),
            clipped_apart=task.clipped_apart,
        )
        self._forward = _Forward(task, self._device, bf16=training.precision == "bf16")
        self._grad_clip = optimizer.grad_clip
        self._schedule = schedule
        self._ranks = ranks
        self._steps_done = 0
        self._updating = False
        self._parted = stage > 0
        self._reached: set[Parameter] = set()
        for parameter in self._parameters().values() if not self._parted else ():
            parameter.register_post_accumulate_grad_hook(self._reached.add)  # type: ignore[no-untyped-call]
        settings = deepspeed_settings(training, optimizer)
        with ExitStack() as resources:
            if not dist.is_initialized():
                resources.enter_context(_group_of_one(self._device))
            strides = {p: p.stride() for p in self._parameters().values()}
            for parameter in strides:  # DeepSpeed takes no channels-last weights
                parameter.data = _row_major(parameter.data)
            timeout = timedelta(minutes=training.timeout_minutes)
            asked = _Asked(settings)
            self._engine = _initialized(self._forward, self._adamw, asked, self._device, timeout)
            resources.callback(self._engine.destroy)
            _refuse_unread(training.deepspeed.extra, asked.names)
            for parameter, stride in strides.items() if not self._parted else ():
                laid_out = torch.empty_strided(parameter.shape, stride, device=self._device)
                parameter.data = laid_out.copy_(parameter.data)
            self._resources = resources.pop_all()
        self._tensors = _zero_tensors(stage, self._engine.optimizer, self._adamw)
        self._tensors.begin_slots(0.0)

    @property
    def steps_done(self) -> int:
        """See `Engine.steps_done`."""
        return self._steps_done

    @property
    def is_whole(self) -> bool:
        """See `Engine.is_whole`."""
        return not self._updating

    def step(self, micro_batches: Sequence[B]) -> StepResult:
        """See `Engine.step`. Each rank has as many micro-batches, some of which may be padding."""
        self._task.at_step(self._steps_done)
        counts = [self._task.num_targets(batch) for batch in micro_batches]
        total = self._ranks.sum([sum(counts)])[0]
        lr = self._schedule(self._steps_done)
        for group in self._adamw.param_groups:
            group["lr"] = lr * group["lr_scale"]
        losses, metrics = [], []
        for number, (batch, count) in enumerate(zip(micro_batches, counts, strict=True), start=1):
            self._engine.set_gradient_accumulation_boundary(number == len(counts))
            loss, found = self._engine(batch.to(self._device))
            part = loss * (count / total)
            self._engine.backward(part * self._ranks.world)
            losses.append(part.detach())
            if count:
                metrics.append(found)
        loss_parts = torch.stack(losses).tolist()
        loss, *reached = self._ranks.sum([sum(loss_parts), *self._own_reached()])
        self._updating = True
        grad_norm = self._update(reached) if math.isfinite(loss) else math.nan
        if not math.isfinite(grad_norm):
            self._updating = False  # there was none
            raise non_finite(self._steps_done, micro_batches, loss_parts, self._ranks)
        self._steps_done += 1
        self._updating = False
        return StepResult(loss, grad_norm, lr, sum_metrics(metrics), round(total))

    def evaluate(self, batch: B) -> dict[str, Mean]:
        """See `Engine.evaluate`."""
        self._task.eval()
        try:
            with torch.no_grad():
                _, metrics = self._engine(batch.to(self._device))
        finally:
            self._task.train()
        return {} if self._task.is_padding(batch) else dict(metrics)

    def state(self) -> EngineState:
        """See `Engine.state`; copies on the CPU."""
        parameters = self._parameters()
        model = {} if not self._ranks.is_first else unshared_tensors(self._task.trainable)
        model = {name: tensor.cpu() for name, tensor in model.items() if name not in parameters}
        optimizer: dict[str, Tensor] = {}
        sizes = {name: self._tensors.shape(p).numel() for name, p in parameters.items()}
        owners = balanced(sizes, self._ranks.world)
        for name, parameter in parameters.items():
            weight = self._tensors.weight(parameter)
            slots = self._tensors.slots(parameter)
            if self._ranks.is_first:
                model[name] = weight.cpu()
            if owners[name] == self._ranks.rank:
                optimizer |= {f"{name}.{slot}": tensor.cpu() for slot, tensor in slots.items()}
        return EngineState(self._steps_done, model, optimizer)

    def load_state(self, state: EngineState) -> None:
        """See `Engine.load_state`."""
        parameters = self._parameters()
        whole = {
            name: torch.empty(self._tensors.shape(p), device="meta")
            for name, p in parameters.items()
        }
        model = unshared_tensors(self._task.trainable)
        check_tensors(model | whole, state.model, "weights")
        slots = expected_slots(whole, state.optimizer)
        check_tensors(slots, state.optimizer, "optimizer state")
        with torch.no_grad():
            for name, tensor in model.items():
                if name not in parameters:
                    tensor.copy_(state.model[name])
        for name, parameter in parameters.items():
            self._tensors.set_weight(parameter, state.model[name])
        self._tensors.begin_slots(float(state.steps_done))
        for name, parameter in parameters.items():
            if f"{name}.step" in slots:
                found = {slot: state.optimizer[f"{name}.{slot}"] for slot in (*MOMENTS, "step")}
                self._tensors.set_slots(parameter, found)
        self._steps_done = state.steps_done
        self._task.at_step(max(state.steps_done - 1, 0))  # as an evaluation would find it

    def compile(self) -> None:
        """See `Engine.compile`."""
        # As DeepSpeed's own `compile` does: marks for a profiler would break every graph.
        importlib.import_module("deepspeed").utils.nvtx.enable_nvtx = False
        self._task.compile_blocks()

    def close(self) -> None:
        """See `Engine.close`."""
        self._resources.close()

    def _own_reached(self) -> list[float]:
        """At stage 0, for each parameter whether this rank's backward passes have reached it."""
        if self._parted:
            return []
        flags = [float(parameter in self._reached) for parameter in self._parameters().values()]
        self._reached.clear()
        return flags

    def _update(self, reached: Sequence[float]) -> float:
        """The optimizer's step, unless the gradient is not finite; the gradient's norm.

        Args:
            reached: the sum of `_own_reached` over the ranks.
        """
        if not self._parted:
            return self._update_whole(reached)
        self._engine.step()
        if not self._engine.was_step_applied():
            return math.nan
        return float(self._engine.get_global_grad_norm())

    def _update_whole(self, reached: Sequence[float]) -> float:
        """At stage 0 gradients are whole and torch's own, and so is all that is done to them."""
        for parameter, ranks in zip(self._parameters().values(), reached, strict=True):
            if not ranks:
                parameter.grad = None  # DeepSpeed made it zero, and AdamW would let it decay
        clipped = clip_sets(self._adamw)
        norms = [
            get_total_norm([p.grad for p in members if p.grad is not None]) for members in clipped
        ]
        grad_norm = get_total_norm(norms).item()
        if math.isfinite(grad_norm):
            for members, norm in zip(clipped, norms, strict=True):
                clip_grads_with_norm_(members, self._grad_clip, norm)
            self._engine.step()
        return grad_norm

    def _parameters(self) -> dict[str, Parameter]:
        return dict(self._task.trainable.named_parameters())


def balanced(sizes: Mapping[str, int], world: int) -> dict[str, int]:
    """A rank for each name: the largest first, each to the rank that has least so far."""
    loads = [0] * world
    owners = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += sizes[name]
    return owners


class _Forward(nn.Module):
    """What DeepSpeed wraps: it sees the trainable part alone, and casts and parts nothing else.

    Args:
        task: whose loss is computed.
        device: of the batches.
        bf16: autocast.
    """

    def __init__(self, task: Task[Any], device: torch.device, *, bf16: bool) -> None:
        super().__init__()
        self.trainable = task.trainable
        self._task = [task]  # in a list, a module is no part of this one
        self._device = device
        self._bf16 = bf16

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Mean]]:
        """Loss and metrics: DeepSpeed looks for the loss in a tuple."""
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
            output = self._task[0](batch)
        return output.loss, output.metrics


@contextmanager
def _group_of_one(device: torch.device) -> Iterator[None]:
    """What DeepSpeed needs where no launcher started this process."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        comm = importlib.import_module("deepspeed").comm
        # DeepSpeed keeps groups of its own beside torch's, if it came as far as that.
        (comm if comm.is_initialized() else dist).destroy_process_group()


class _Asked(dict[str, Any]):
    """DeepSpeed's settings; `names` are those that it has looked for, be they there or not.

    Its own top-level settings have no schema: what it does not look for it ignores. It looks in a
    shallow copy, which shares `names`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self.names: set[str] = set()

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return super().__contains__(name)

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)

    def keys(self) -> KeysView[str]:  # type: ignore[override]  # dict's own would not ask us
        return KeysView(self)


def _refuse_unread(extra: dict[str, Any], names: set[str]) -> None:
    """What DeepSpeed has not looked for would do nothing.

    Args:
        extra: see `DeepSpeedConfig`.
        names: that it has looked for.

    Raises:
        UserError: see `DeepSpeedEngine`.
    """
    unread = sorted(extra.keys() - names)
    if not unread:
        return
    guesses = ((name, nearest(name, sorted(names))) for name in unread)
    listed = [f"{name} (did you mean {guess}?)" if guess else name for name, guess in guesses]
    raise UserError(
        f"training.deepspeed.extra: DeepSpeed {version('deepspeed')} has no setting "
        f"{', '.join(listed)}. It would do nothing: correct it, or leave it out"
    )


def _initialized(
    forward: nn.Module,
    adamw: torch.optim.AdamW,
    settings: _Asked,
    device: torch.device,
    timeout: timedelta,
) -> Any:
    """DeepSpeed's engine, whose ranks wait so long for each other."""
    os.environ["DS_ACCELERATOR"] = device.type  # read when it is imported
    # It takes the GPU from a variable that srun does not set; the ranks have chosen theirs.
    gpu = torch.cuda.current_device() if device.type == "cuda" else 0
    os.environ.setdefault("LOCAL_RANK", str(gpu))
    # On a CPU it else starts a process, numactl, at every bucket of stage 3.
    os.environ.setdefault("LOCAL_SIZE", "1")
    deepspeed = importlib.import_module("deepspeed")
    # Else it compiles C++ at the first start, and a start that is killed leaves a lock that the
    # next ones wait for without end. Gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    config: Any = importlib.import_module("deepspeed.runtime.config")
    # Else it makes its own copy of the world's group, which waits for torch's 30 minutes.
    groups: Any = importlib.import_module("deepspeed.utils.groups")
    groups._WORLD_GROUP = dist.new_group(timeout=timeout)
    # From inside DeepSpeed; torch 2.13 has new names for what it calls.
    warnings.filterwarnings("ignore", r".*_tensor` is deprecated", FutureWarning)
    logger = logging.getLogger("DeepSpeed")
    logger.addFilter(_is_news)
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of every optimizer but its own
    try:
        with redirect_stdout(io.StringIO()):  # figures of memory
            engine, *_ = deepspeed.initialize(
                model=forward, optimizer=adamw, config=settings, dist_init_required=False
            )
    except (ValidationError, ValueError, AssertionError, config.DeepSpeedConfigError) as error:
        raise UserError(
            f"training.deepspeed: DeepSpeed refuses its settings: {error}. `toto show RECIPE` "
            "prints all that it is given; what toto does not set stands in training.deepspeed.extra"
        ) from error
    finally:
        logger.setLevel(level)
    return engine


def _row_major(tensor: Tensor) -> Tensor:
    """A copy with the last axis together; that of a 1 × 1 kernel passes for it in any order."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _is_news(record: logging.LogRecord) -> bool:
    """No: it says that a gradient is not finite, which the error of the step says with more."""
    return "OVERFLOW" not in record.getMessage()


def _zero_tensors(stage: int, wrapped: Any, adamw: torch.optim.AdamW) -> ZeroTensors:
    from toto.training.zero_tensors import zero_tensors  # imports deepspeed

    return zero_tensors(stage, wrapped, adamw)
