"""A rank that hangs, dies or meets a loss that is not finite, in whole runs of two ranks."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from rank_processes import launched, same_on_all, started
from toy_runs import toy_recipe, train_lines, train_rank, wait_for_step

from toto.recipe.reader import check_recipe
from toto.tasks.next_token import NextTokenTask
from toto.training.checkpoint import find_checkpoint, verify
from toto.training.checkpoint_folder import complete_checkpoints
from toto.training.engine_deepspeed import DeepSpeedEngine
from toto.training.nonfinite import NonFiniteError
from toto.training.task import TaskOutput

pytestmark = pytest.mark.distributed


def train_rank_that_hangs(raw: dict, said: Path, lost: int, where: str) -> int:
    """A run in which the rank `lost` stands still in its sixth step, from `where` on."""
    method = getattr(DeepSpeedEngine, where)

    def hanging(engine, *args):
        if engine.steps_done == 5:
            os.kill(os.getpid(), signal.SIGSTOP)
        return method(engine, *args)

    if int(os.environ["RANK"]) == lost:
        with mock.patch.object(DeepSpeedEngine, where, hanging):
            return train_rank(raw, said, False)
    return train_rank(raw, said, False)


# The others wait for it in a collective of DeepSpeed's, or in one of toto's.
@pytest.mark.parametrize(
    ("lost", "where"), [(1, "_update"), pytest.param(0, "step", marks=pytest.mark.slow)]
)
def test_a_hung_rank_ends_the_run_by_the_timeout_and_is_named(tmp_path, tiny_datasets, lost, where):
    raw = toy_recipe(tiny_datasets, tmp_path / "run", timeout_minutes=0.07)
    ranks = started(2, train_rank_that_hangs, raw, tmp_path / "said", lost, where)
    try:
        ok, text = ranks[1 - lost].outcome()
        assert not ok
        assert "RunError: " in text
        assert f"rank {lost}" in text.splitlines()[-1]
        assert "cannot be reached" in text
        assert "training.timeout_minutes" in text
    finally:
        for rank in ranks:
            rank.process.kill()
            rank.process.join()
    checkpoint = find_checkpoint(tmp_path / "run")
    assert checkpoint.name == "step-00000004"
    verify(checkpoint)


def test_a_killed_rank_ends_the_others_at_once(tmp_path, tiny_datasets):
    raw = toy_recipe(tiny_datasets, tmp_path / "run", steps=100_000)
    killed, other = reversed(started(2, train_rank, raw, tmp_path / "said", False))
    try:
        wait_for_step(tmp_path / "run", 3)
        killed.process.kill()
        begun = time.monotonic()
        ok, text = other.outcome()
        assert time.monotonic() - begun < 15
        assert not ok
        assert "RunError: rank 1 on " in text
        assert "go on with --resume" in text
    finally:
        other.process.kill()
        other.process.join()
    verify(complete_checkpoints(tmp_path / "run/checkpoints")[-1])


def train_rank_with_nan(raw: dict, said: Path, step: int, sequences: int) -> str:
    """A run whose loss is NaN on the last sequence of a step; what it ends with."""
    forward = NextTokenTask.forward

    def with_nan(task, batch):
        output = forward(task, batch)
        if (step + 1) * sequences - 1 in batch.position_B.tolist():
            return TaskOutput(output.loss * torch.nan, output.metrics)
        return output

    with mock.patch.object(NextTokenTask, "forward", with_nan):
        try:
            train_rank(raw, said, False)
        except NonFiniteError as error:
            return "\n".join([str(error), *error.__notes__])
    return "no error"


def test_a_loss_that_is_not_finite_leaves_the_steps_before_it(tmp_path, tiny_datasets):
    output = tmp_path / "run"
    raw = toy_recipe(tiny_datasets, output, steps=8, save_every=3)
    sequences = check_recipe(raw, "toy").batch_sequences
    messages = launched(2, train_rank_with_nan, raw, tmp_path / "said", 5, sequences)
    text = same_on_all(messages)
    assert "step 5: the loss is not finite on rank 1. Samples: positions 29 " in text
    checkpoint = find_checkpoint(output)
    assert checkpoint.name == "step-00000005"
    assert text.endswith(f"the steps before it are saved in {checkpoint}")
    assert "\nsource " in text
    assert launched(2, train_rank, raw, tmp_path / "said", True) == [8, 8]
    launched(2, train_rank, raw | {"output": str(tmp_path / "whole")}, tmp_path / "said", False)
    assert train_lines(output) == train_lines(tmp_path / "whole")
