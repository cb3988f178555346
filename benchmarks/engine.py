"""What an engine adds to a step: ours beside a bare loop on the same module, in one process.

Alone, `LocalEngine` against a loop of plain torch; started by torchrun, `DeepSpeedEngine` against a
loop of plain DeepSpeed with the same dictionary of settings, both on every rank. Each side has its
own copy of a LLaMA, sees the same codes, takes the same number of micro-batches, clips and steps,
and reads its loss once a step, as people who log do. Pairs of steps alternate in order. The table
gives the median overhead and the 95 % interval of its mean over pairs, by bootstrap.

    python benchmarks/engine.py [--pairs 60] [--width 256] [--layers 6] [--batch 4]
    torchrun --nproc-per-node 2 benchmarks/engine.py [--stage 1]
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import statistics
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import torch

from toto.backbones.config import LlamaConfig
from toto.data.batch import Batch
from toto.model import AutoregressiveModel
from toto.tasks.next_token import NextTokenTask
from toto.tokenizers.config import DvaeConfig
from toto.training.config import DeepSpeedConfig, OptimizerConfig, TrainingConfig
from toto.training.deepspeed_settings import deepspeed_settings
from toto.training.distributed import Ranks, joined_ranks
from toto.training.engine_deepspeed import DeepSpeedEngine
from toto.training.engine_local import LocalEngine
from toto.training.launch import find_launch
from toto.training.optim import build_optimizer

if TYPE_CHECKING:
    from collections.abc import Callable

FRAMES, SIDE, MICRO_BATCHES = 16, 8, 2
LR = 3e-4
OPTIMIZER = OptimizerConfig(lr=LR)
TOKENIZER = DvaeConfig(
    num_codes=1024, width=8, blocks_per_group=1, decoder_stem=8, weights="random:0"
)


def fresh_task(options: argparse.Namespace) -> NextTokenTask:
    """The same weights for both sides."""
    torch.manual_seed(0)
    config = LlamaConfig(
        width=options.width, num_layers=options.layers, num_heads=8, ffn_dim=3 * options.width
    )
    return NextTokenTask(AutoregressiveModel(TOKENIZER, config), TOKENIZER.build(), num_sources=3)


def random_batches(options: argparse.Namespace, ranks: Ranks) -> list[Batch]:
    """The micro-batches of every step, on this rank."""
    generator = torch.Generator().manual_seed(ranks.rank)
    size = (options.batch, FRAMES, SIDE, SIDE)
    return [
        Batch(
            pixels_BTCHW=None,
            codes_BTHW=torch.randint(1024, size, generator=generator),
            is_image_B=torch.zeros(options.batch, dtype=torch.bool),
            source_B=torch.arange(options.batch) % 3,
            position_B=torch.arange(options.batch),
            label_B=torch.full((options.batch,), -1),
        )
        for _ in range(MICRO_BATCHES)
    ]


def bare_torch(task: NextTokenTask, batches: list[Batch]) -> Callable[[], float]:
    """A loop as people write it."""
    model = task.model.train()
    optimizer = build_optimizer(model, task.param_roles(), OPTIMIZER)

    def step() -> float:
        total = 0.0
        for batch in batches:
            loss = model.losses(batch.codes_BTHW, batch.is_image_B).mean() / len(batches)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        return float(total)

    return step


def bare_deepspeed(
    task: NextTokenTask, batches: list[Batch], training: TrainingConfig
) -> Callable[[], float]:
    """The same with DeepSpeed's engine, which counts the micro-batches itself."""
    deepspeed = importlib.import_module("deepspeed")
    model = task.model.train()
    settings = deepspeed_settings(training, OPTIMIZER)
    settings["gradient_accumulation_steps"] = len(batches)
    settings["gradient_clipping"] = OPTIMIZER.grad_clip
    engine, *_ = deepspeed.initialize(
        model=_Losses(model),
        optimizer=build_optimizer(model, task.param_roles(), OPTIMIZER),
        config=settings,
        dist_init_required=False,
    )

    def step() -> float:
        total = 0.0
        for batch in batches:
            loss = engine(batch.codes_BTHW, batch.is_image_B)
            engine.backward(loss)
            engine.step()
            total += loss.detach() / len(batches)
        return float(total)

    return step


class _Losses(torch.nn.Module):
    """DeepSpeed wraps what it calls."""

    def __init__(self, model: AutoregressiveModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, codes_BTHW: torch.Tensor, is_image_B: torch.Tensor) -> torch.Tensor:
        return self.model.losses(codes_BTHW, is_image_B).mean()


def sides(options: argparse.Namespace, ranks: Ranks) -> dict[str, Callable[[], float]]:
    """Ours, and the bare loop, with equal first losses."""
    batches = random_batches(options, ranks)
    training = TrainingConfig(
        steps=1,
        micro_batch=options.batch,
        precision="fp32",
        device="cpu",
        engine="deepspeed" if ranks.world > 1 else "local",
        deepspeed=DeepSpeedConfig(zero_stage=options.stage),
    )
    if ranks.world == 1:
        engine = LocalEngine(
            fresh_task(options), OPTIMIZER, lambda step: LR, device=torch.device("cpu"),
            precision="fp32",
        )  # fmt: skip
        bare = bare_torch(fresh_task(options), batches)
    else:
        engine = DeepSpeedEngine(
            fresh_task(options), training, OPTIMIZER, lambda step: LR, ranks=ranks
        )
        bare = bare_deepspeed(fresh_task(options), batches, training)
    return {"ours": lambda: engine.step(batches).loss, "bare": bare}


def measure(
    found: dict[str, Callable[[], float]], pairs: int, ranks: Ranks
) -> list[tuple[float, float]]:
    """Seconds of (ours, bare) in each pair; the ranks begin every step together."""
    for _ in range(3):
        losses = {name: step() for name, step in found.items()}
    if ranks.world == 1 and abs(losses["ours"] - losses["bare"]) > 1e-3:
        raise SystemExit(f"the sides do not train alike: losses {losses}")
    times = []
    for pair in range(pairs):
        taken = {}
        for name in ("ours", "bare") if pair % 2 == 0 else ("bare", "ours"):
            ranks.any(False)
            begun = time.perf_counter()
            found[name]()
            taken[name] = time.perf_counter() - begun
        times.append((taken["ours"], taken["bare"]))
    return times


def main() -> None:
    """Measure, and print a line of a table on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4, help="sequences of a micro-batch")
    parser.add_argument("--stage", type=int, default=1, choices=[0, 1, 2, 3])
    options = parser.parse_args()
    launch = find_launch(os.environ)
    with joined_ranks(launch, device="cpu", timeout=timedelta(minutes=10)) as ranks:
        times = measure(sides(options, ranks), options.pairs, ranks)
    if not ranks.is_first:
        return
    overhead = np.array([ours / bare - 1 for ours, bare in times])
    draws = np.random.default_rng(0).choice(overhead, (10_000, len(overhead))).mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    ours, bare = (statistics.median(side) for side in zip(*times, strict=True))
    what = "DeepSpeed, ZeRO " + str(options.stage) if ranks.world > 1 else "local"
    print(
        f"torch {torch.__version__}, {platform.processor() or 'cpu'}, {ranks.world} ranks of "
        f"{torch.get_num_threads()} threads; LLaMA {options.width} × {options.layers}, "
        f"{MICRO_BATCHES} micro-batches of {options.batch} × {FRAMES * SIDE * SIDE}; "
        f"{len(times)} pairs\n\n"
        "| engine | ours, ms a step | bare, ms | overhead, median | mean (95 %) |\n"
        "|---|---|---|---|---|\n"
        f"| {what} | {1e3 * ours:.1f} | {1e3 * bare:.1f} | {np.median(overhead):+.1%} "
        f"| {overhead.mean():+.1%} ({low:+.1%} to {high:+.1%}) |"
    )


if __name__ == "__main__":
    main()
