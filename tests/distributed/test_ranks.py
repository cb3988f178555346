"""What ranks tell each other, on three real processes; all cases share one start of them."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from rank_processes import RankError, on_ranks, same_on_all
from rich.console import Console
from toy_pretraining import dealt, global_batch, toy_engine

from toto.errors import RunError, UserError
from toto.training.checkpoint import complete_checkpoints
from toto.training.config import TrainingConfig
from toto.training.distributed import Ranks
from toto.training.loop import Description, train
from toto.training.metrics import metric_values, read_lines
from toto.training.progress import make_display
from toto.training.rundir import open_run
from toto.training.task import Mean

pytestmark = pytest.mark.distributed


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def everything_they_tell(ranks: Ranks) -> dict[str, object]:
    found: dict[str, object] = {}
    found["gathered"] = ranks.gather({"rank": ranks.rank})
    found["any"] = (ranks.any(ranks.rank == 2), ranks.any(False))
    found["sum"] = ranks.sum([1.0, 2.0**-40 * ranks.rank])
    counts = torch.tensor([ranks.rank, 1])
    ranks.sum_(counts)
    found["summed"] = counts.tolist()
    copied = torch.full((2,), float(ranks.rank))
    ranks.copy_first_(copied)
    found["copied"] = copied.tolist()
    # Rank 1 has nothing but padding, and no metrics.
    own = {"loss": Mean(scalar(10.0**ranks.rank), scalar(ranks.rank + 1.0))}
    total = ranks.total({} if ranks.rank == 1 else own)
    found["total"] = (total["loss"].total.item(), total["loss"].count.item())
    found["from first"] = ranks.from_first(lambda: f"made by {ranks.rank}")
    found["refused"] = refusal(ranks)
    return found


def refusal(ranks: Ranks) -> list[str]:
    """The message of every error that all ranks must raise together."""

    def fail() -> None:
        raise UserError(f"rank {ranks.rank} finds no data")

    def stop() -> None:
        raise RunError("the disk is full")

    facts = {"toto's code": "abc", "the recipe's optimizer.lr": "3e-4"}
    if ranks.rank == 2:
        facts["the recipe's optimizer.lr"] = "1e-3"
    messages = []
    for work in (
        lambda: ranks.from_first(fail),
        lambda: ranks.after_first(fail),
        lambda: ranks.from_first(stop),
        lambda: ranks.require_same(facts),
    ):
        try:
            work()
        except (UserError, RunError) as error:
            messages.append(f"{type(error).__name__}: {error}")
    return messages


def test_three_ranks_tell_each_other_the_same():
    found = same_on_all(on_ranks(3, everything_they_tell))
    assert found["gathered"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
    assert found["any"] == (True, False)
    assert found["sum"] == [3.0, 3 * 2.0**-40]
    assert found["summed"] == [3, 3]
    assert found["copied"] == [0.0, 0.0]
    assert found["total"] == (101.0, 4.0)
    assert found["from first"] == "made by 0"
    from_first, after_first, disk, other = found["refused"]
    assert from_first == after_first == "UserError: rank 0 finds no data"
    assert disk == "RunError: the disk is full"
    assert other.startswith("UserError: ")
    assert "rank 2 on " in other
    assert "optimizer.lr is 1e-3, not 3e-4" in other
    assert "toto's code" not in other


def test_one_rank_tells_itself_without_a_process_group():
    ranks = Ranks()
    assert ranks.is_first
    assert ranks.gather(5) == [5]
    assert ranks.any(True)
    assert not ranks.any(False)
    assert ranks.sum([0.1]) == [0.1]
    assert ranks.from_first(lambda: 3) == ranks.after_first(lambda: 3) == 3
    mean = Mean(scalar(1.0), scalar(2.0))
    assert ranks.total({"loss": mean}) == {"loss": mean}
    ranks.require_same({"code": "abc"})


def end_of_another(ranks: Ranks, how: str) -> str:
    if ranks.rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(8)
        return ""
    try:
        ranks.any(False)
    except RunError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("how", ["killed", "hangs"])
def test_a_rank_that_ends_or_hangs_ends_the_others(how):
    begun = time.monotonic()
    with pytest.raises(RankError) as error:
        on_ranks(2, reported_end, how, timeout=timedelta(seconds=3))
    assert "rank 1 on " in str(error.value)
    assert "cannot be reached: " in str(error.value)
    assert "pair.cc" not in str(error.value).partition("cannot be reached")[2].partition(" It ")[0]
    assert "--resume" in str(error.value)
    assert time.monotonic() - begun < 15


def reported_end(ranks: Ranks, how: str) -> None:
    text = end_of_another(ranks, how)
    if ranks.is_first:
        raise AssertionError(text)


def a_run(ranks: Ranks, path: Path, signalled: int) -> tuple[int, bool, str]:
    """20 steps of the toy; in the seventh a signal to the rank `signalled` alone."""
    engine = toy_engine(ranks, 1)

    def batches(start: int, stop: int):
        for step in range(start, stop):
            if step == 6 and ranks.rank == signalled:
                os.kill(os.getpid(), signal.SIGTERM)
            yield dealt(step, ranks)

    result = train(
        engine,
        TrainingConfig(steps=20, log_every=2, eval_every=5, save_every=4, keep=2),
        ranks=ranks,
        run=ranks.from_first(lambda: open_run(path, resume=False, command="toto train toy")),
        batches=batches,
        evaluate=lambda: {
            "toy": metric_values(ranks.total(engine.evaluate(global_batch(99 + ranks.rank))))
        },
        tokens_per_step=100,
        seed=1,
        description=Description({"name": "toy"}, None),
        display=make_display(ranks, Console(quiet=True)),
    )
    engine.close()
    return result.step, result.interrupted, result.checkpoint.name


def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path):
    outcomes = on_ranks(2, a_run, tmp_path / "run", 1)
    assert same_on_all(outcomes) == (7, True, "step-00000007")
    assert [path.name for path in complete_checkpoints(tmp_path / "run/checkpoints")] == [
        "step-00000004",
        "step-00000007",
    ]
    # Each line once, and the means are those of both ranks' sequences.
    lines = list(read_lines(tmp_path / "run/metrics.jsonl"))
    assert [line["step"] for line in lines if line["kind"] == "train"] == [2, 4, 6]
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [5]
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 1
