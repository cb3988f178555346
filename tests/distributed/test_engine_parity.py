"""The local engine and DeepSpeed's ZeRO 0 to 3 at 1, 2 and 3 ranks give the same losses.

All cases of a number of ranks share one start of its processes.
"""

from __future__ import annotations

import pytest
import torch
from rank_processes import on_ranks, same_on_all
from toy_pretraining import (
    STEPS,
    take_steps,
    toy_engine,
    toy_task,
)

from toto.training.distributed import Ranks

pytestmark = pytest.mark.distributed

QUICKSTART_LR = 3e-3
Case = tuple[int, str, float, str]

FP32: list[Case] = [(stage, "fp32", 3e-4, "llama") for stage in range(4)]
FAST: list[Case] = [(stage, "fp32", QUICKSTART_LR, "llama") for stage in range(4)]
BF16: list[Case] = [(stage, "bf16", 3e-4, "llama") for stage in range(4)]
OTHERS: list[Case] = [(3, "fp32", 3e-4, "gpt2"), (3, "fp32", 3e-4, "mamba")]
ALL = [*FP32, *FAST, *BF16, *OTHERS]
# Of each stage, rate and precision something, on every number of ranks.
SOME = {
    1: [FP32[1], BF16[3]],
    2: [*FP32, FAST[3], BF16[1], BF16[2]],
    3: [FP32[0], FP32[3], FAST[2]],
}


def curves(ranks: Ranks, cases: list) -> dict[tuple, tuple[list[float], float]]:
    """Losses of 20 steps and the first gradient norm of each case."""
    found = {}
    for stage, precision, lr, backbone in cases:
        engine = toy_engine(ranks, stage, precision=precision, lr=lr, task=toy_task(backbone))
        results = take_steps(engine, ranks, 0, STEPS)
        found[stage, precision, lr, backbone] = (
            [result.loss for result in results],
            results[0].grad_norm,
        )
        engine.close()
    return found


@pytest.fixture(scope="module")
def local():
    """The plain engine's curves, by precision, rate and backbone."""
    torch.set_num_threads(1)
    kinds = {case[1:] for case in ALL}
    found = curves(Ranks(), [("local", *kind) for kind in sorted(kinds)])
    return {case[1:]: value for case, value in found.items()}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_losses_and_first_norms_agree(world, local):
    assert_agreement(world, SOME[world], local)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_all_losses_and_first_norms_agree(world, local):
    assert_agreement(world, ALL, local)


def assert_agreement(world: int, cases: list[Case], local) -> None:
    found = same_on_all(on_ranks(world, curves, cases))
    assert set(found) == set(cases)
    for case, (losses, norm) in found.items():
        _, precision, lr, _ = case
        expected, expected_norm = local[case[1:]]
        assert min(expected) < expected[0] - 0.01  # it learns
        tolerance = {"bf16": 1e-2}.get(precision, 1e-6 if lr == 3e-4 else 1e-4)
        assert losses == pytest.approx(expected, rel=tolerance), case
        assert norm == pytest.approx(expected_norm, rel=1e-6 if precision == "fp32" else 1e-2), case
