"""A task, its data and a run of it, small enough for thousands of steps a second."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from torch import Tensor, nn

from toto.training.checkpoint import CheckpointMeta
from toto.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig
from toto.training.distributed import Ranks
from toto.training.engine_local import LocalEngine
from toto.training.loop import Description, TrainResult, train
from toto.training.metrics import metric_values
from toto.training.progress import LineDisplay
from toto.training.rundir import open_run
from toto.training.schedule import WarmupCosine
from toto.training.task import Mean, Task, TaskOutput

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from toto.backbones.base import ParamRole
    from toto.training.engine import EngineState

CPU = torch.device("cpu")
TOKENS_PER_STEP = 100


@dataclass(frozen=True)
class ToyBatch:
    x_BC: Tensor
    y_B: Tensor
    source_B: Tensor
    position_B: Tensor

    def to(self, device: torch.device) -> ToyBatch:
        return ToyBatch(*(value.to(device) for value in vars(self).values()))

    def part(self, rows: slice) -> ToyBatch:
        return ToyBatch(*(value[rows] for value in vars(self).values()))


class ToyTask(Task[ToyBatch]):
    """Regression with noise on the input, so that the order of random numbers matters."""

    def __init__(self, noise: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))
        self.frozen = nn.Linear(2, 2)
        self.noise = noise
        self.steps_seen: list[int] = []

    @property
    def trainable(self) -> nn.Module:
        return self.net

    def forward(self, batch: ToyBatch) -> TaskOutput:
        noise = self.noise * torch.randn_like(batch.x_BC) if self.training else 0.0
        error_B = (self.net(batch.x_BC + noise).float()[:, 0] - batch.y_B).square()
        total = error_B.detach().double().sum()
        count = torch.tensor(float(len(error_B)), dtype=torch.float64)
        return TaskOutput(error_B.mean(), {"loss": Mean(total, count)})

    def num_targets(self, batch: ToyBatch) -> int:
        return len(batch.y_B)

    def param_roles(self) -> dict[str, ParamRole]:
        return {
            "0.weight": "hidden",
            "0.bias": "hidden",
            "1.weight": "norm",
            "1.bias": "norm",
            "2.weight": "readout",
            "2.bias": "readout",
        }

    def at_step(self, step: int) -> None:
        self.steps_seen.append(step)


def toy_batch(step: int, size: int = 10) -> ToyBatch:
    """The batch of a step: a pure function of it."""
    generator = torch.Generator().manual_seed(step)
    x_BC = torch.randn(size, 4, generator=generator)
    positions = torch.arange(step * size, (step + 1) * size)
    return ToyBatch(x_BC, x_BC.sum(1).sin(), positions % 2, positions)


def toy_batches(start: int, stop: int) -> Iterator[list[ToyBatch]]:
    """Two micro-batches a step, of different sizes."""
    for step in range(start, stop):
        batch = toy_batch(step)
        yield [batch.part(slice(0, 7)), batch.part(slice(7, 10))]


def toy_engine(
    task: Task[ToyBatch] | None = None, *, steps: int = 20, precision: str = "fp32"
) -> LocalEngine[ToyBatch]:
    schedule = WarmupCosine(ScheduleConfig(warmup_steps=3), peak=1e-2, steps=steps)
    return LocalEngine(
        task or ToyTask(), OptimizerConfig(lr=1e-2), schedule, device=CPU, precision=precision
    )


def toy_meta(step: int) -> CheckpointMeta:
    """What a checkpoint of the toy task says of itself; its files are added by who writes them."""
    return CheckpointMeta(
        step=step,
        tokens=step * 10,
        seconds=1.5,
        recipe={"name": "toy"},
        tokenizer="abc",
        versions={"threads": 2},
    )


def toy_settings(**changes: int | bool | None) -> TrainingConfig:
    values = {"steps": 20, "log_every": 2, "eval_every": 5, "save_every": 4, "keep": 2}
    return TrainingConfig(**(values | changes))


def toy_train(
    path: Path,
    engine: LocalEngine[ToyBatch],
    settings: TrainingConfig,
    *,
    resume: bool = False,
    batches=toy_batches,
    console: Console | None = None,
    sources: tuple[str, ...] = (),
    seconds_at_peak: float | None = None,
) -> TrainResult:
    """A run of the toy task in `path`."""

    def evaluate():
        return {"toy": metric_values(engine.evaluate(toy_batch(10_000)))}

    return train(
        engine,
        settings,
        ranks=Ranks(),
        run=open_run(path, resume=resume, command="toto train toy.yaml"),
        batches=batches,
        evaluate=evaluate,
        tokens_per_step=TOKENS_PER_STEP,
        seed=1,
        description=Description({"name": "toy"}, None),
        display=LineDisplay(console or Console(quiet=True)),
        sources=sources,
        seconds_at_peak=seconds_at_peak,
    )


def digest(state: EngineState) -> str:
    """A hash of every bit of weights and optimizer state."""
    found = hashlib.sha256(str(state.steps_done).encode())
    for tensors in (state.model, state.optimizer):
        for name, tensor in sorted(tensors.items()):
            found.update(name.encode())
            found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
