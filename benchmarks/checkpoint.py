"""What a checkpoint costs training: ours behind the steps, against deepspeed's synchronous save.

Both save the same module in one process, in fp32: our `BackgroundWriter` its weights and two
moments, deepspeed (ZeRO 1, torch's AdamW, one rank, gloo) what its own `save_checkpoint` writes of
it, which holds the weights a second time. A training step of this size takes long on a CPU, so a
stand-in of matrix products runs where the steps would. In each round each side, in turn, runs some
steps undisturbed, saves, and runs steps until what it wrote is on the disk:

- the pause is the time of the save call, all that the step it is taken in becomes longer by;
- the slowdown is that of the steps beside the write, over the undisturbed ones: for ours until the
  checkpoint is published, for deepspeed, which leaves its files to the page cache, as many steps;
- in all: the pause and what those steps lost, in seconds.

Ours syncs to the disk, reads back for its checksums and renames; deepspeed does none of it. Before
each turn the disk is drained. The first save of either, which makes buffers, is not counted.

    DS_ACCELERATOR=cpu python benchmarks/checkpoint.py [--preset large] [--rounds 5] [--folder DIR]
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from toto.backbones.config import LlamaConfig
from toto.model import AutoregressiveModel
from toto.tokenizers.config import DvaeConfig
from toto.training.checkpoint import CheckpointMeta, unshared_tensors
from toto.training.checkpoint_background import BackgroundWriter
from toto.training.engine import EngineState

if TYPE_CHECKING:
    from collections.abc import Iterator

SQUARE = 2048
STEPS_BEFORE = 8
LEAST_STEPS_BESIDE = 8


@dataclass
class Turn:
    """One side's part of a round, in seconds; `slowdown` is a ratio."""

    pause: float
    slowdown: float
    steps: int
    in_all: float
    megabytes: float


class Step:
    """A stand-in for a training step: products of square matrices."""

    def __init__(self, products: int) -> None:
        self._left, self._right = torch.randn(2, SQUARE, SQUARE).unbind()
        self._out = torch.empty(SQUARE, SQUARE)
        self._products = products

    def __call__(self) -> float:
        """Run it; the seconds it took."""
        begun = time.perf_counter()
        for _ in range(self._products):
            torch.mm(self._left, self._right, out=self._out)
        return time.perf_counter() - begun


class Ours:
    """`BackgroundWriter` on the module's weights and the moments of deepspeed's optimizer."""

    name = "toto"

    def __init__(self, folder: Path, engine: Any, module: torch.nn.Module) -> None:
        model = unshared_tensors(module)
        flat = _flat_moments(engine)
        sizes = [tensor.numel() for tensor in model.values()]
        optimizer = {
            f"{name}.{slot}": part.view(tensor.shape)
            for slot, values in flat.items()
            for (name, tensor), part in zip(
                model.items(), values[: sum(sizes)].split(sizes), strict=True
            )
        }
        self._state = EngineState(0, model, optimizer)
        self._writer = BackgroundWriter(folder=folder, keep=1)
        self._path = folder
        self._step = 0

    def save(self) -> None:
        """The call that training waits for."""
        self._step += 1
        meta = CheckpointMeta(
            step=self._step, tokens=0, seconds=0.0, recipe={}, tokenizer=None, versions={}
        )
        self._path = self._writer.save(self._state, meta)

    def written(self) -> bool:
        """Whether the checkpoint is published."""
        return self._path.exists()

    def end(self) -> float:
        """Wait for it; its size in MB."""
        self._writer.drain()
        return megabytes(self._path)


class DeepSpeed:
    """deepspeed's own synchronous save."""

    name = "deepspeed"

    def __init__(self, folder: Path, engine: Any) -> None:
        self._folder = folder
        self._engine = engine

    def save(self) -> None:
        """The call that training waits for."""
        self._engine.save_checkpoint(str(self._folder), tag="now")

    def written(self) -> bool:
        """It returns when it has handed all to the system."""
        return True

    def end(self) -> float:
        """Make room for the next; the size of this one in MB."""
        size = megabytes(self._folder)
        shutil.rmtree(self._folder)
        return size


def deepspeed_engine(module: torch.nn.Module) -> Any:
    """ZeRO 1 over one rank, in fp32, after one step of its optimizer."""
    import deepspeed

    os.environ.setdefault("LOCAL_RANK", "0")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend="gloo")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=torch.optim.AdamW(module.parameters(), lr=3e-4),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 1},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    for weights in engine.optimizer.single_partition_of_fp32_groups:
        weights.grad = torch.randn_like(weights)
    engine.optimizer.optimizer.step()  # makes the moments
    engine.optimizer.optimizer.zero_grad()
    return engine


def _flat_moments(engine: Any) -> dict[str, torch.Tensor]:
    """exp_avg and exp_avg_sq of all parameters, as deepspeed keeps them: one tensor each."""
    (state,) = engine.optimizer.optimizer.state.values()
    return {slot: state[slot] for slot in ("exp_avg", "exp_avg_sq")}


def megabytes(folder: Path) -> float:
    """Of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def take_turn(side: Ours | DeepSpeed, step: Step, steps_beside: int) -> Turn:
    """Steps, a save, steps until it is written and no fewer than `steps_beside`."""
    os.sync()
    before = statistics.median(step() for _ in range(STEPS_BEFORE))
    begun = time.perf_counter()
    side.save()
    pause = time.perf_counter() - begun
    beside: list[float] = []
    while len(beside) < steps_beside or not side.written():
        beside.append(step())
    size = side.end()
    lost = sum(beside) - len(beside) * before
    return Turn(pause, statistics.mean(beside) / before, len(beside), pause + lost, size)


def measure(sides: list[Ours | DeepSpeed], step: Step, rounds: int) -> Iterator[dict[str, Turn]]:
    """One round after the other; who begins changes."""
    for number in range(rounds):
        turns: dict[str, Turn] = {}
        for side in sides if number % 2 == 0 else sides[::-1]:
            least = max([LEAST_STEPS_BESIDE, *(turn.steps for turn in turns.values())])
            turns[side.name] = take_turn(side, step, least)
            print(f"{number}: {side.name} {turns[side.name]}", file=sys.stderr, flush=True)
        yield turns


def spread(values: list[float], digits: str) -> str:
    """Median and range: `1.93 (1.88–1.97)`."""
    return f"{statistics.median(values):{digits}} ({min(values):{digits}}–{max(values):{digits}})"


def report(rounds: list[dict[str, Turn]]) -> str:
    """A row each, and the ratio of the pauses within a round."""
    lines = [
        "| | written, MB | pause, s | slowdown of the steps beside | steps | in all, s |",
        "|---|---|---|---|---|---|",
    ]
    for name in rounds[0]:
        turns = [turns[name] for turns in rounds]
        lines.append(
            f"| {name} | {turns[0].megabytes:,.0f} | {spread([t.pause for t in turns], '.2f')} "
            f"| {spread([t.slowdown for t in turns], '.2f')} "
            f"| {spread([t.steps for t in turns], '.0f')} "
            f"| {spread([t.in_all for t in turns], '.2f')} |"
        )
    ratios = [turns["toto"].pause / turns["deepspeed"].pause for turns in rounds]
    lines.append(f"\nPause, toto over deepspeed: {spread(ratios, '.3f')}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="large", help="of the LLaMA backbone; tiny to try it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--products", type=int, default=12, help="matrix products in a step")
    parser.add_argument("--folder", type=Path, help="where to write; else the temporary folder")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    backbone = LlamaConfig.model_validate({"preset": arguments.preset})
    module = AutoregressiveModel(DvaeConfig(weights="random:0"), backbone)
    count = sum(parameter.numel() for parameter in module.parameters()) / 1e6
    engine = deepspeed_engine(module)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        ours = Ours(Path(name) / "toto", engine, module)
        sides: list[Ours | DeepSpeed] = [ours, DeepSpeed(Path(name) / "deepspeed", engine)]
        step = Step(arguments.products)
        for _ in measure(sides, step, 1):
            pass  # makes the buffers
        rounds = list(measure(sides, step, arguments.rounds))
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; {count:.1f}M parameters; "
        f"median (range) of {arguments.rounds} rounds\n\n{report(rounds)}"
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
