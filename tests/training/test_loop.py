from __future__ import annotations

import io
import json
import os
import signal
import threading

import pytest
import torch
from rich.console import Console
from toy_training import ToyTask, digest, toy_batches, toy_engine, toy_settings, toy_train

from toto.errors import RunError, UserError
from toto.training.checkpoint import find_checkpoint, load_state, read_meta
from toto.training.loop import step_seed
from toto.training.task import Mean

TIMINGS = ("tokens_per_s", "data_wait", "seconds", "utilisation", "memory", "save_seconds")


def lines(run):
    found = []
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        found.append({key: value for key, value in line.items() if key not in TIMINGS})
    return found


def test_a_run_records_evaluates_and_saves_when_due(tmp_path):
    engine = toy_engine()
    result = toy_train(tmp_path, engine, toy_settings(steps=11))
    assert (result.step, result.interrupted) == (11, False)
    steps = {
        kind: [x["step"] for x in lines(tmp_path) if x["kind"] == kind]
        for kind in ("train", "eval")
    }
    assert steps == {"train": [2, 4, 6, 8, 10, 11], "eval": [5, 10, 11]}
    assert lines(tmp_path)[0]["tokens"] == 200
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.glob("step*")) == ["step-00000008", "step-00000011"]
    assert result.checkpoint == find_checkpoint(tmp_path) == folder / "step-00000011"
    meta = read_meta(result.checkpoint)
    assert (meta.step, meta.tokens, meta.recipe) == (11, 1100, {"name": "toy"})
    assert meta.versions["torch"] == torch.__version__
    assert 0 < meta.seconds <= result.seconds


class TellsSourcesApart(ToyTask):
    def forward(self, batch):
        output = super().forward(batch)
        if self.training:
            loss = output.metrics["loss"]
            here = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
            output.metrics["source_loss"] = Mean(loss.total * here, loss.count * here)
        return output


def test_a_run_is_watched(tmp_path):
    toy_train(
        tmp_path,
        toy_engine(TellsSourcesApart()),
        toy_settings(steps=12, save_every=4),
        sources=("videos", "pictures", "clips"),
        seconds_at_peak=1e-6,
    )
    train = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in train if line["kind"] == "train"]
    # The save of step 4 stands in the way of what step 6 reports.
    assert [line["save_seconds"] > 0 for line in train] == [False, False, True, False, True, False]
    for line in train:
        per_step = 100 / line["tokens_per_s"]
        assert line["utilisation"] == pytest.approx(1e-6 / per_step)
        assert line["memory"] > 2**20
        assert line["source_loss"] == {"videos": line["loss"], "pictures": None, "clips": None}


def test_what_is_not_known_is_not_written(tmp_path):
    toy_train(tmp_path, toy_engine(), toy_settings(steps=2))
    assert "utilisation" not in json.loads((tmp_path / "metrics.jsonl").read_text().split("\n")[0])


def test_the_loss_falls(tmp_path):
    toy_train(
        tmp_path, toy_engine(steps=200), toy_settings(steps=200, save_every=200, eval_every=100)
    )
    losses = [line["loss"] for line in lines(tmp_path) if line["kind"] == "train"]
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


class Killed(BaseException):
    """What a SIGKILL leaves behind: nothing is saved, nothing is closed in order."""


def batches_until(stop_at):
    def batches(start, stop):
        for step, micro_batches in zip(range(start, stop), toy_batches(start, stop), strict=True):
            if step == stop_at:
                raise Killed
            yield micro_batches

    return batches


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("killed_at", [1, 4, 7, 10, 19])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, precision, killed_at):
    whole = toy_engine(precision=precision)
    toy_train(tmp_path / "whole", whole, toy_settings())
    with pytest.raises(Killed):
        toy_train(
            tmp_path / "cut",
            toy_engine(precision=precision),
            toy_settings(),
            batches=batches_until(killed_at),
        )
    torch.manual_seed(99)
    resumed = toy_engine(precision=precision)
    toy_train(tmp_path / "cut", resumed, toy_settings(), resume=True)
    assert digest(resumed.state()) == digest(whole.state())
    assert digest(load_state(find_checkpoint(tmp_path / "cut"))) == digest(whole.state())
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def test_the_noise_of_a_step_depends_on_seed_and_step_alone(tmp_path):
    assert step_seed(1, 2, 0) == step_seed(1, 2, 0)
    assert len({step_seed(a, b, c) for a in range(20) for b in range(20) for c in range(3)}) == 1200
    without = toy_engine(ToyTask(noise=0))
    with_noise = toy_engine()
    toy_train(tmp_path / "a", without, toy_settings())
    toy_train(tmp_path / "b", with_noise, toy_settings())
    assert digest(without.state()) != digest(with_noise.state())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_can_be_resumed(tmp_path, number):
    def batches(start, stop):
        for step, micro_batches in zip(range(start, stop), toy_batches(start, stop), strict=True):
            if step == 9:  # of the scheduler, and passed on by a launcher
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), number)
            yield micro_batches

    before = signal.getsignal(number)
    result = toy_train(tmp_path / "cut", toy_engine(), toy_settings(), batches=batches)
    assert (result.step, result.stopped_by) == (10, number)
    assert result.checkpoint.name == "step-00000010"
    assert signal.getsignal(number) is before
    # Step 10 is due for an evaluation; the resumed run makes it.
    resumed, whole = toy_engine(), toy_engine()
    assert not toy_train(tmp_path / "cut", resumed, toy_settings(), resume=True).interrupted
    toy_train(tmp_path / "whole", whole, toy_settings())
    assert digest(resumed.state()) == digest(whole.state())
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


@pytest.fixture
def usual_ctrl_c():
    """A shell that starts a job in the background lets it ignore Ctrl-C, this suite included."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("usual_ctrl_c")
def test_a_second_ctrl_c_ends_it_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("toto.training.interrupt.ECHO_SECONDS", 0.0)

    def batches(start, stop):
        for micro_batches in toy_batches(start, stop):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            yield micro_batches

    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path, toy_engine(), toy_settings(), batches=batches)


def test_it_runs_outside_the_main_thread(tmp_path):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(toy_train(tmp_path, toy_engine(), toy_settings(steps=2)))
    )
    thread.start()
    thread.join()
    assert results[0].step == 2


def test_a_finished_run_is_left_as_it_is(tmp_path):
    result = toy_train(tmp_path, toy_engine(), toy_settings())
    before = (tmp_path / "metrics.jsonl").read_text()
    again = toy_train(tmp_path, toy_engine(), toy_settings(), resume=True)
    assert (again.step, again.checkpoint) == (20, result.checkpoint)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_checkpoint_beyond_the_last_step_is_refused(tmp_path):
    toy_train(tmp_path, toy_engine(), toy_settings(steps=8))
    with pytest.raises(UserError, match=r"training\.steps is 5"):
        toy_train(tmp_path, toy_engine(), toy_settings(steps=5), resume=True)


def test_a_non_finite_loss_stops_and_leaves_a_checkpoint_of_the_step_before(tmp_path):
    def batches(start, stop):
        for step, micro_batches in zip(range(start, stop), toy_batches(start, stop), strict=True):
            if step == 6:
                micro_batches[0].x_BC[0, 0] = torch.inf
            yield micro_batches

    with pytest.raises(RunError, match="step 6: the loss is not finite") as error:
        toy_train(tmp_path, toy_engine(), toy_settings(), batches=batches)
    assert find_checkpoint(tmp_path).name == "step-00000006"
    saved = f"the steps before it are saved in {find_checkpoint(tmp_path)}"
    assert error.value.__notes__[-1] == saved
    resumed, whole = toy_engine(), toy_engine()
    toy_train(tmp_path, resumed, toy_settings(), resume=True)
    toy_train(tmp_path / "whole", whole, toy_settings())
    assert digest(resumed.state()) == digest(whole.state())


def test_a_non_finite_loss_is_told_though_the_disk_is_full(tmp_path, monkeypatch):
    def write(self, unfinished, state):
        raise OSError(28, "No space left on device")

    def batches(start, stop):
        for micro_batches in toy_batches(start, stop):
            micro_batches[0].x_BC[0, 0] = torch.inf
            yield micro_batches

    monkeypatch.setattr("toto.training.checkpoint_writer.CheckpointWriter._write", write)
    with pytest.raises(RunError, match="step 0: the loss is not finite") as error:
        toy_train(tmp_path, toy_engine(), toy_settings(), batches=batches)
    assert "No space left" in error.value.__notes__[0]


def test_another_thread_count_is_warned_about_once(tmp_path):
    toy_train(tmp_path, toy_engine(), toy_settings(steps=4))
    threads = torch.get_num_threads()

    def resumed(steps):
        console = Console(file=io.StringIO(), width=300)
        toy_train(tmp_path, toy_engine(), toy_settings(steps=steps), resume=True, console=console)
        return console.file.getvalue()

    assert "resuming on another" not in resumed(5)
    torch.set_num_threads(threads + 1)
    try:
        text = resumed(6)
    finally:
        torch.set_num_threads(threads)
    assert text.count(f"threads {threads} before, {threads + 1} now") == 1


def test_too_few_batches_are_an_error_not_a_short_run(tmp_path):
    with pytest.raises(ValueError, match="zip"):
        toy_train(
            tmp_path, toy_engine(), toy_settings(), batches=lambda a, b: toy_batches(a, b - 1)
        )
