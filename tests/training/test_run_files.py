from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_training import toy_engine, toy_settings, toy_train

from toto.errors import CheckpointError, RunError, UserError
from toto.training.metrics import (
    EvalLine,
    MetricsWriter,
    TrainLine,
    cut_back,
    metric_values,
    read_lines,
)
from toto.training.rundir import open_run
from toto.training.task import Mean, sum_metrics

COMMAND = "toto train recipes/toy.yaml"


def line(step: int, loss: float = 1.0) -> TrainLine:
    return TrainLine(step, step * 10, loss, 1e-3, 0.5, 100.0, 0.1, 2.0)


def test_an_existing_run_is_refused_with_the_command_to_type(tmp_path):
    run = tmp_path / "toy"
    open_run(run, resume=False, command=COMMAND).write_text("recipe.yaml", "name: toy\n")
    assert (run / "recipe.yaml").read_text() == "name: toy\n"
    with pytest.raises(UserError) as error:
        open_run(run, resume=False, command=COMMAND)
    assert f"`{COMMAND} --resume`" in str(error.value)
    assert f"`{COMMAND} --output {run}-2`" in str(error.value)


def test_an_empty_directory_is_taken(tmp_path):
    assert open_run(tmp_path, resume=False, command=COMMAND).checkpoint is None


def test_resume_without_a_run_is_refused_and_before_the_first_checkpoint_it_begins(tmp_path):
    with pytest.raises(CheckpointError, match="no run at"):
        open_run(tmp_path / "gone", resume=True, command=COMMAND)
    assert not (tmp_path / "gone").exists()
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "metrics.jsonl").write_text("")
    assert open_run(tmp_path / "early", resume=True, command=COMMAND).checkpoint is None


def test_a_file_in_the_way_and_a_place_that_cannot_be_are_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        open_run(tmp_path / "file", resume=False, command=COMMAND)
    with pytest.raises(RunError, match="cannot be written"):
        open_run(tmp_path / "file" / "run", resume=False, command=COMMAND)


def test_resume_removes_what_is_beyond_its_checkpoint(tmp_path):
    toy_train(tmp_path, toy_engine(), toy_settings(steps=8))
    folder = tmp_path / "checkpoints"
    (folder / "latest").write_text("step-00000004\n")
    (folder / "step-00000012.partial").mkdir()
    run = open_run(tmp_path, resume=True, command=COMMAND)
    assert run.checkpoint == folder / "step-00000004"
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-00000004"]


def test_lines_are_written_whole_and_nan_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path, 0) as writer:
        writer.train(line(1))
        writer.evaluation(
            EvalLine(1, 10, {"digits": {"loss": math.nan, "frame_loss": [1.0, math.inf]}})
        )
        assert len(path.read_text().splitlines()) == 2  # flushed, the file still open
    train, evaluation = map(json.loads, path.read_text().splitlines())
    assert list(train) == [
        "kind", "step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "data_wait", "seconds",
    ]  # fmt: skip
    assert train["kind"] == "train"
    assert evaluation == {
        "kind": "eval",
        "step": 1,
        "tokens": 10,
        "sources": {"digits": {"loss": None, "frame_loss": [1.0, None]}},
    }


def test_other_scalars_of_the_task_stand_in_their_own_object(tmp_path):
    with MetricsWriter(tmp_path / "metrics.jsonl", 0) as writer:
        writer.train(TrainLine(1, 10, 1.0, 1e-3, 0.5, 100.0, 0.1, 2.0, {"psnr": 20.0}))
    assert next(read_lines(tmp_path / "metrics.jsonl"))["metrics"] == {"psnr": 20.0}


def test_what_watches_a_run_is_written_and_drawn(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watched = {
        "source_loss": {"videos": 1.5, "pictures": math.nan},
        "utilisation": 0.25,
        "memory": 2**30,
        "save_seconds": 0.5,
    }
    with MetricsWriter(tmp_path / "metrics.jsonl", 0) as writer:
        writer.train(replace(line(3), **watched))
    (written,) = read_lines(tmp_path / "metrics.jsonl")
    assert {name: written[name] for name in watched} == watched | {
        "source_loss": {"videos": 1.5, "pictures": None}
    }
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    drawn = {name: events.Scalars(name)[0].value for name in events.Tags()["scalars"]}
    assert drawn.pop("train/loss/videos") == 1.5
    assert drawn.pop("train/memory") == 2**30
    assert sorted(drawn) == [
        f"train/{name}"
        for name in (
            "data_wait", "grad_norm", "loss", "lr", "save_seconds", "seconds", "tokens_per_s",
            "utilisation",
        )
    ]  # fmt: skip


def test_tensorboard_gets_the_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsWriter(tmp_path / "metrics.jsonl", 0) as writer:
        writer.train(line(3, loss=1.25))
        writer.evaluation(EvalLine(3, 30, {"digits": {"loss": 2.5, "frame_loss": [2.5]}}))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(3, 1.25)]
    assert [(e.step, e.value) for e in events.Scalars("loss/digits")] == [(3, 2.5)]
    assert "frame_loss/digits" not in events.Tags()["scalars"]


def test_cutting_back_drops_later_and_torn_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path, 0) as writer:
        for step in (2, 4, 6):
            writer.train(line(step))
        writer.evaluation(EvalLine(6, 60, {}))
    whole = path.read_text()
    path.write_text(whole + '{"kind": "train", "st')
    assert [entry["step"] for entry in read_lines(path)] == [2, 4, 6, 6]
    assert cut_back(path, 6)
    assert path.read_text() == whole
    assert not cut_back(path, 5)
    assert path.read_text() == "".join(whole.splitlines(keepends=True)[:2])
    assert not cut_back(path, 0)
    assert path.read_text() == ""
    assert not cut_back(tmp_path / "none.jsonl", 0)
    assert not (tmp_path / "none.jsonl").exists()


def test_lines_end_at_line_feeds_alone(tmp_path):
    name = "a\u2028b\x85c"  # str.splitlines splits at these
    line = {"kind": "failure", "step": 1, "source": name}
    (tmp_path / "failures.jsonl").write_text(json.dumps(line, ensure_ascii=False) + "\n", "utf-8")
    assert list(read_lines(tmp_path / "failures.jsonl")) == [line]


def test_a_full_disk_is_a_run_error(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with (
        pytest.raises(RunError, match=r"metrics\.jsonl cannot be written: .*No space left"),
        MetricsWriter(tmp_path / "metrics.jsonl", 0) as writer,
    ):
        writer.train(line(1))


def test_metrics_add_up_exactly():
    def mean(total, count):
        return Mean(*(torch.tensor(x, dtype=torch.float64) for x in (total, count)))

    parts = [
        {"loss": mean(6.0, 2.0), "frame": mean([1.0, 2.0], [1.0, 2.0])},
        {"loss": mean(3.0, 1.0), "frame": mean([5.0, 4.0], [1.0, 1.0])},
    ]
    assert metric_values(sum_metrics(parts)) == {"loss": 3.0, "frame": [3.0, 2.0]}
