"""Probes beside the next-token loss, and classification, on two ranks: the losses of one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rank_processes import on_ranks, same_on_all
from toy_pretraining import (
    BACKBONES,
    SEQUENCES,
    STEPS,
    BrightnessConfig,
    T,
    dealt,
    toy_settings,
)

from toto.errors import UserError
from toto.model import AutoregressiveModel
from toto.tasks.config import ClassifyConfig, Labels, ModelParts, NextTokenProbesConfig
from toto.training.config import ScheduleConfig
from toto.training.distributed import Ranks
from toto.training.engine_deepspeed import DeepSpeedEngine
from toto.training.engine_local import LocalEngine
from toto.training.schedule import WarmupCosine

pytestmark = pytest.mark.distributed

LR, TAKEN = 3e-3, 4
CLASSES = 3
TASKS = {
    "probes": NextTokenProbesConfig.model_validate(
        {"name": "next_token_probes", "probes": {"sources": ["a"]}}
    ),
    "classify": ClassifyConfig.model_validate(
        {"name": "classify", "head": "attention", "label_smoothing": 0.1}
    ),
}
Case = tuple[str, int]
CASES: list[Case] = [("probes", 0), ("classify", 0), ("classify", 1), ("classify", 3)]


def task_of(name: str):
    """Of the three sources the first has labels that probes learn."""
    torch.manual_seed(0)
    tokenizer = BrightnessConfig()
    model = AutoregressiveModel(tokenizer, BACKBONES["llama"])
    labels = Labels((0,), CLASSES, is_image=True)
    return TASKS[name].build(ModelParts(model, tokenizer.build(), None, 3, labels))


def batches(step: int, ranks: Ranks, name: str):
    """Every picture has a class, its place in the stream, modulo; of probes a step's first three.

    So the second of two ranks has nothing to probe.
    """
    for batch in dealt(step, ranks):
        label_BT = (batch.position_B[:, None] * T + torch.arange(T)) % CLASSES
        if name == "probes":
            label_BT = label_BT.where(batch.position_B[:, None] % SEQUENCES < 3, -1)
        yield replace(batch, label_BT=label_BT, label_B=label_BT[:, 0])


def curve(ranks: Ranks, name: str, stage: int | None) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step; without a stage by the plain engine."""
    training, optimizer = toy_settings(stage or 0, lr=LR)
    optimizer = optimizer.model_copy(update={"layer_decay": 0.8})
    schedule = WarmupCosine(ScheduleConfig(warmup_steps=1), peak=LR, steps=STEPS)
    if stage is None:
        engine = LocalEngine(
            task_of(name), optimizer, schedule, device=torch.device("cpu"), precision="fp32"
        )
    else:
        engine = DeepSpeedEngine(task_of(name), training, optimizer, schedule, ranks=ranks)
    results = [engine.step(list(batches(step, ranks, name))) for step in range(TAKEN)]
    engine.close()
    return [(result.loss, result.grad_norm) for result in results]


def curves(ranks: Ranks, cases: list[Case]) -> dict[Case, list[tuple[float, float]]]:
    return {case: curve(ranks, *case) for case in cases}


def test_two_ranks_have_the_losses_of_one():
    found = same_on_all(on_ranks(2, curves, CASES))
    for (name, stage), values in found.items():
        expected = curve(Ranks(), name, None)
        for (loss, norm), (plain_loss, plain_norm) in zip(values, expected, strict=True):
            assert loss == pytest.approx(plain_loss, rel=1e-5), (name, stage)
            assert norm == pytest.approx(plain_norm, rel=1e-4), (name, stage)


def test_a_bank_of_probes_is_held_whole():
    training, optimizer = toy_settings(1)
    schedule = WarmupCosine(ScheduleConfig(warmup_steps=1), peak=LR, steps=STEPS)
    with pytest.raises(
        UserError, match=r"zero_stage: 1 parts .* NextTokenProbesTask needs all weights"
    ):
        DeepSpeedEngine(task_of("probes"), training, optimizer, schedule, ranks=Ranks())
