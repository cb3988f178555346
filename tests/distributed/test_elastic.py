"""What one engine saves another goes on with: any stage, any number of ranks, the same losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rank_processes import on_ranks, same_on_all
from safetensors.torch import load_file, save_file
from toy_pretraining import STEPS, take_steps, toy_engine

from toto.training.distributed import Ranks
from toto.training.engine import EngineState
from toto.training.engine_deepspeed import balanced

pytestmark = pytest.mark.distributed

LR = 3e-3


def save(state: EngineState, folder: Path, ranks: Ranks) -> None:
    """Each rank writes what falls to it."""
    if ranks.is_first:
        folder.mkdir(parents=True)
    ranks.any(False)  # until the folder is there
    kinds = {f"optimizer-{ranks.rank}": state.optimizer}
    assert bool(state.model) == ranks.is_first
    if ranks.is_first:
        kinds["model"] = state.model
    for name, tensors in kinds.items():
        whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(whole, folder / f"{name}.safetensors")
    ranks.any(False)


def load(folder: Path, steps_done: int) -> EngineState:
    shares = [load_file(path) for path in sorted(folder.glob("optimizer-*.safetensors"))]
    optimizer = {key: tensor for share in shares for key, tensor in share.items()}
    assert len(optimizer) == sum(map(len, shares))  # each tensor once
    return EngineState(steps_done, load_file(folder / "model.safetensors"), optimizer)


Segment = tuple[int | str, Path | None, int, int, Path]


def run_segments(ranks: Ranks, segments: list[Segment], precision: str) -> list[list[float]]:
    """Losses of each segment: a stage goes on from a folder, from step to step, into another."""
    found = []
    for stage, source, start, stop, target in segments:
        engine = toy_engine(ranks, stage, precision=precision, lr=LR)
        if source is not None:
            engine.load_state(load(source, start))
        assert engine.steps_done == start
        found.append([result.loss for result in take_steps(engine, ranks, start, stop)])
        save(engine.state(), target, ranks)
        engine.close()
    return found


@pytest.fixture(scope="module")
def whole():
    """The undisturbed losses of the local engine, by precision."""
    torch.set_num_threads(1)
    ranks = Ranks()
    return {
        precision: [
            result.loss
            for result in take_steps(
                toy_engine(ranks, "local", precision=precision, lr=LR), ranks, 0, STEPS
            )
        ]
        for precision in ("fp32", "bf16")
    }


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-5), pytest.param("bf16", 1e-4, marks=pytest.mark.slow)]
)
def test_the_losses_go_on_at_another_stage_and_another_number_of_ranks(
    tmp_path, whole, precision, tolerance
):
    a, b, c, d, e, f = (tmp_path / name for name in "abcdef")
    losses = {}
    (losses["local"],) = run_segments(Ranks(), [("local", None, 0, 5, a)], precision)
    losses["local → 1×2"], losses["1×2 → 3×2"], losses["2×2"], losses["0×2"] = same_on_all(
        on_ranks(
            2,
            run_segments,
            [(1, a, 5, 10, b), (3, b, 10, 15, c), (2, None, 0, 5, d), (0, None, 0, 5, e)],
            precision,
        )
    )
    (losses["3×2 → 2×1"],) = on_ranks(1, run_segments, [(2, c, 15, 20, f)], precision)[0]
    (losses["2×2 → local"],) = run_segments(
        Ranks(), [("local", d, 5, 10, tmp_path / "g")], precision
    )
    (losses["0×2 → 1×3"],) = same_on_all(
        on_ranks(3, run_segments, [(1, e, 5, 10, tmp_path / "h")], precision)
    )
    expected = whole[precision]
    starts = {"local": 0, "2×2": 0, "0×2": 0, "1×2 → 3×2": 10, "3×2 → 2×1": 15}
    for name, found in losses.items():
        start = starts.get(name, 5)
        assert found == pytest.approx(expected[start : start + 5], rel=tolerance), name


def test_the_losses_tell_whether_the_optimizer_s_state_came_along(tmp_path, whole):
    """Else the comparison above could not fail."""
    run_segments(Ranks(), [("local", None, 0, 5, tmp_path / "a")], "fp32")
    state = load(tmp_path / "a", 5)
    engine = toy_engine(Ranks(), "local", lr=LR)
    engine.load_state(replace(state, optimizer={}))
    found = [result.loss for result in take_steps(engine, Ranks(), 5, 10)]
    assert found != pytest.approx(whole["fp32"][5:10], rel=1e-3)


def test_the_shares_of_the_ranks_are_of_about_the_same_size_and_hold_each_name_once():
    sizes = {"embed": 1000, **{f"block.{i}": 300 for i in range(10)}, "norm": 3}
    owners = balanced(sizes, 4)
    assert set(owners) == set(sizes)
    loads = [sum(size for name, size in sizes.items() if owners[name] == r) for r in range(4)]
    assert sum(loads) == sum(sizes.values())
    assert max(loads) - min(loads) <= 300
    assert balanced(dict(reversed(sizes.items())), 4) == owners
    assert set(balanced({"one": 5}, 3).values()) == {0}
