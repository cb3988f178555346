"""A next-token task over a frozen tokenizer, small enough for all engines in seconds."""

from __future__ import annotations

from dataclasses import replace

import torch
from toy_brightness import BrightnessConfig

from toto.backbones.config import Gpt2Config, LlamaConfig, MambaConfig
from toto.data.batch import Batch
from toto.data.ranks import micro_batches, share
from toto.model import AutoregressiveModel
from toto.tasks.next_token import NextTokenTask
from toto.tokenizers.config import PatchConfig
from toto.training.config import (
    DeepSpeedConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
)
from toto.training.distributed import Ranks
from toto.training.engine import Engine, StepResult
from toto.training.engine_deepspeed import DeepSpeedEngine
from toto.training.engine_local import LocalEngine
from toto.training.schedule import WarmupCosine

T, H, W, PIXELS = 2, 2, 2, 8
SEQUENCES = 7  # of a step: no number of ranks but 1 divides it
MICRO_BATCH = 2
STEPS = 20

BACKBONES = {
    "llama": LlamaConfig(width=16, num_layers=2, num_heads=2, ffn_dim=32),
    "gpt2": Gpt2Config(width=16, num_layers=2, num_heads=2, ffn_dim=32),
    "mamba": MambaConfig(width=16, num_layers=2),
}


def toy_task(backbone: str = "llama", *, patches: bool = False) -> NextTokenTask:
    config = PatchConfig(patch_size=4) if patches else BrightnessConfig()
    torch.manual_seed(0)
    return NextTokenTask(AutoregressiveModel(config, BACKBONES[backbone]), config.build())


def toy_settings(stage: int, *, precision: str = "fp32", lr: float = 3e-4, extra=None):
    """The training and optimizer sections."""
    training = TrainingConfig(
        steps=STEPS,
        micro_batch=MICRO_BATCH,
        precision=precision,
        device="cpu",
        engine="deepspeed",
        # Small enough that the toy has several buckets and parted weights.
        deepspeed=DeepSpeedConfig(
            zero_stage=stage,
            bucket_elements=1000,
            prefetch_elements=500,
            persistent_elements=20,
            extra=extra or {},
        ),
    )
    return training, OptimizerConfig(lr=lr)


def toy_engine(
    ranks: Ranks,
    stage: int | str,
    *,
    precision: str = "fp32",
    lr: float = 3e-4,
    task: NextTokenTask | None = None,
) -> Engine[Batch]:
    """Of a ZeRO stage, or "local"."""
    task = task or toy_task()
    schedule = WarmupCosine(ScheduleConfig(warmup_steps=3), peak=lr, steps=STEPS)
    training, optimizer = toy_settings(0 if stage == "local" else stage, precision=precision, lr=lr)
    if stage == "local":
        assert ranks.world == 1
        cpu = torch.device("cpu")
        return LocalEngine(task, optimizer, schedule, device=cpu, precision=precision)
    return DeepSpeedEngine(task, training, optimizer, schedule, ranks=ranks)


def global_batch(step: int) -> Batch:
    """All sequences of a step; brightness drifts, so that there is something to learn."""
    generator = torch.Generator().manual_seed(step)
    shape = (SEQUENCES, T, 3, PIXELS, PIXELS)
    noise = torch.randint(0, 40, shape, generator=generator)
    level = torch.randint(0, 200, (SEQUENCES, 1, 1, 1, 1), generator=generator)
    pixels = (noise + level).to(torch.uint8)
    positions = torch.arange(step * SEQUENCES, (step + 1) * SEQUENCES)
    return Batch(pixels, None, positions % 2 == 0, positions % 3, positions, positions * 0 - 1)


def dealt(step: int, ranks: Ranks) -> list[Batch]:
    """A rank's micro-batches of a step, as the loader deals them."""
    batch = global_batch(step)
    rows = list(share(0, SEQUENCES, rank=ranks.rank, world=ranks.world))
    parts = [_rows(batch, rows[i : i + MICRO_BATCH]) for i in range(0, len(rows), MICRO_BATCH)]
    lacking = micro_batches(SEQUENCES, MICRO_BATCH, world=ranks.world) - len(parts)
    return parts + [replace(_rows(batch, [0]), padding=True)] * lacking


def _rows(batch: Batch, rows: list[int]) -> Batch:
    values = {
        name: value[rows]
        for name, value in vars(batch).items()
        if value is not None and name != "padding"
    }
    return Batch(codes_BTHW=None, **values)


def take_steps(engine: Engine[Batch], ranks: Ranks, start: int, stop: int) -> list[StepResult]:
    return [engine.step(dealt(step, ranks)) for step in range(start, stop)]
