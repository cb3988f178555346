"""The background writer is the plain one, later; and ranks that speak through files."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from toy_training import ToyTask, digest, toy_batches, toy_engine, toy_meta, toy_settings, toy_train

import toto.training.checkpoint_writer as module
from toto.errors import CheckpointError, RunError
from toto.training.checkpoint import complete_checkpoints, find_checkpoint, load_state, read_meta
from toto.training.checkpoint_background import BackgroundWriter, open_writer
from toto.training.checkpoint_writer import CheckpointWriter
from toto.training.distributed import Ranks
from toto.training.engine import EngineState

WRITERS = [CheckpointWriter, BackgroundWriter]
SHORT = timedelta(seconds=0.2)
FULL = OSError(errno.ENOSPC, "No space left on device")


def state_of(step: int, device: str = "cpu") -> EngineState:
    """Every sort of tensor that a run holds: also channels last, half precision and scalars."""
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(4, 3, 2, 2, generator=generator)
    model = {
        "conv": weight.to(memory_format=torch.channels_last),
        "half": torch.randn(5, 7, generator=generator).bfloat16(),
        "count": torch.tensor(step),
    }
    optimizer = {"conv.exp_avg": weight.square(), "conv.step": torch.tensor(float(step))}
    return EngineState(
        step,
        {name: tensor.to(device) for name, tensor in model.items()},
        {name: tensor.to(device) for name, tensor in optimizer.items()},
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@dataclass
class Gate:
    """Holds `save_file` until it is opened, and counts how many are in it."""

    opened: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    inside: int = 0
    most: int = 0

    def __call__(self, tensors, file):
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.entered.release()
        assert self.opened.wait(10)
        SAVE_FILE(tensors, file)
        self.inside -= 1


SAVE_FILE, WRITE_ATOMIC = module.save_file, module.write_atomic


@pytest.fixture
def gate(monkeypatch):
    gate = Gate()
    monkeypatch.setattr(module, "save_file", gate)
    yield gate
    gate.opened.set()


def test_both_ways_write_the_same_bytes_though_the_tensors_move_on(tmp_path, gate):
    gate.opened.set()
    with CheckpointWriter(folder=tmp_path / "plain", keep=2) as writer:
        for step in (1, 2, 3):
            writer.save(state_of(step), toy_meta(step))
    gate.opened.clear()
    with BackgroundWriter(folder=tmp_path / "behind", keep=2) as writer:
        for step in (1, 2, 3):
            live = state_of(step)
            path = writer.save(live, toy_meta(step))
            assert path.name == f"step-{step:08d}"
            assert not path.exists()
            for tensor in (*live.model.values(), *live.optimizer.values()):
                tensor.zero_()
            gate.opened.set()
    assert contents(tmp_path / "behind") == contents(tmp_path / "plain")
    assert len(contents(tmp_path / "plain")) == 2 * 3 + 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_of_a_gpu_are_copied_to_pinned_memory(tmp_path):
    with CheckpointWriter(folder=tmp_path / "plain", keep=2) as writer:
        for step in (1, 2):
            writer.save(state_of(step), toy_meta(step))
    with BackgroundWriter(folder=tmp_path / "behind", keep=2) as writer:
        for step in (1, 2):
            live = state_of(step, device="cuda")
            writer.save(live, toy_meta(step))
            for tensor in (*live.model.values(), *live.optimizer.values()):
                tensor.zero_()
    assert contents(tmp_path / "behind") == contents(tmp_path / "plain")


def test_the_buffers_are_used_again_and_what_comes_later_gets_its_own(tmp_path, monkeypatch):
    places = []

    def save_file(tensors, file):
        places.append({name: tensor.data_ptr() for name, tensor in tensors.items()})
        SAVE_FILE(tensors, file)

    monkeypatch.setattr(module, "save_file", save_file)
    with BackgroundWriter(folder=tmp_path, keep=2) as writer:
        for step in (1, 2, 3):
            live = state_of(step)
            if step == 3:  # a parameter that has its first gradient
                live.optimizer["half.exp_avg"] = torch.ones(5, 7)
            writer.save(live, toy_meta(step))
    model, optimizer = places[::2], places[1::2]
    assert model[0] == model[1] == model[2]
    assert (
        optimizer[0]
        == optimizer[1]
        == {name: place for name, place in optimizer[2].items() if name != "half.exp_avg"}
    )
    assert "half.exp_avg" in load_state(find_checkpoint(tmp_path)).optimizer


def test_steps_go_on_while_one_is_written_and_a_second_save_waits_for_the_first(tmp_path, gate):
    with BackgroundWriter(folder=tmp_path, keep=5) as writer:
        writer.save(state_of(1), toy_meta(1))
        assert gate.entered.acquire(timeout=60)
        assert complete_checkpoints(tmp_path) == []  # save returned, and nothing is there yet
        threading.Timer(0.1, gate.opened.set).start()
        writer.save(state_of(2), toy_meta(2))
        assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-00000001"]
        writer.drain()
        assert [path.name for path in complete_checkpoints(tmp_path)][1:] == ["step-00000002"]
    assert gate.most == 1
    for step in (1, 2):
        found = load_state(tmp_path / f"step-{step:08d}")
        assert digest(found) == digest(state_of(step))


def test_a_failure_comes_out_once_and_what_was_good_stands(tmp_path, monkeypatch):
    with BackgroundWriter(folder=tmp_path, keep=5) as writer:
        good = writer.save(state_of(1), toy_meta(1))
        writer.drain()
        assert not writer.failed
        monkeypatch.setattr(module, "save_file", fail)
        writer.save(state_of(2), toy_meta(2))
        wait_until(lambda: writer.failed)
        monkeypatch.setattr(module, "save_file", SAVE_FILE)
        with pytest.raises(RunError, match=r"step 2 .*No space left") as error:
            writer.save(state_of(3), toy_meta(3))
        assert str(good) in str(error.value)
        assert not writer.failed
        after = writer.save(state_of(3), toy_meta(3))
    assert complete_checkpoints(tmp_path) == [good, after]


def fail(*arguments):
    raise FULL


def wait_until(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def make_writer(folder):
    return BackgroundWriter(folder=folder, keep=1)


def run_that_ends_by(error, writer, state):
    with writer:
        writer.save(state, toy_meta(1))
        raise error


def test_an_error_of_the_run_lets_the_checkpoint_be_finished(tmp_path, gate):
    threading.Timer(0.1, gate.opened.set).start()
    with pytest.raises(RunError, match="not finite"):
        run_that_ends_by(RunError("not finite"), make_writer(tmp_path), state_of(1))
    assert find_checkpoint(tmp_path).name == "step-00000001"


def test_an_error_of_the_run_is_told_with_that_of_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "save_file", fail)
    with pytest.raises(RunError, match="not finite") as error:
        run_that_ends_by(RunError("not finite"), make_writer(tmp_path), state_of(1))
    (note,) = error.value.__notes__
    assert "step 1 could not be saved" in note


def test_a_second_ctrl_c_does_not_wait_and_the_half_is_removed_later(tmp_path, gate):
    with pytest.raises(KeyboardInterrupt):
        run_that_ends_by(KeyboardInterrupt(), make_writer(tmp_path), state_of(1))
    assert gate.entered.acquire(timeout=60)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        find_checkpoint(tmp_path)
    gate.opened.set()
    wait_until(lambda: not writers_at_work())


def writers_at_work() -> bool:
    return any(thread.name == "checkpoint" for thread in threading.enumerate())


@pytest.mark.parametrize("kind", WRITERS)
def test_steps_that_are_kept_for_good(tmp_path, kind):
    with kind(folder=tmp_path, keep=2, keep_every=4) as writer:
        for step in range(1, 12):
            writer.save(state_of(step), toy_meta(step))
    kept = [int(path.name.removeprefix("step-")) for path in complete_checkpoints(tmp_path)]
    assert kept == [4, 8, 10, 11]


@pytest.mark.parametrize("kind", WRITERS)
def test_one_who_reads_an_old_checkpoint_over_nfs_stops_no_run(tmp_path, monkeypatch, kind):
    """There a file that is open is renamed instead of removed, so that its folder stays."""
    with monkeypatch.context() as nfs:
        nfs.setattr(os, "rmdir", lambda *arguments, **options: fail_as(errno.ENOTEMPTY))
        with kind(folder=tmp_path, keep=1) as writer:
            for step in (1, 2, 3):
                writer.save(state_of(step), toy_meta(step))
        assert (tmp_path / "step-00000002.old.partial").is_dir()
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-00000003"]
    with kind(folder=tmp_path, keep=1):
        assert {path.name for path in tmp_path.iterdir()} == {"latest", "step-00000003"}


def fail_as(number):
    raise OSError(number, os.strerror(number))


# Ranks.


def share(state: EngineState, rank: int, world: int) -> EngineState:
    """What the engine of a rank gives: rank 0 the model, each its share of the optimizer."""
    names = sorted(state.optimizer)[rank::world]
    return EngineState(
        state.steps_done,
        state.model if rank == 0 else {},
        {name: state.optimizer[name] for name in names},
    )


def ranks_save(writers, steps) -> list[str | None]:
    """Each rank saves the steps in a thread of its own; what each raised."""
    raised: list[str | None] = [None] * len(writers)
    entered = threading.Barrier(len(writers))  # in a run the first step is

    def run(rank, writer):
        try:
            with writer:
                entered.wait(timeout=60)
                for step in steps:
                    writer.save(share(state_of(step), rank, writer.world), toy_meta(step))
        except RunError as error:
            raised[rank] = str(error)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    return raised


def make_ranks(kind, folder, world, **settings):
    folder.mkdir(exist_ok=True)
    return [
        kind(folder=folder, keep=2, rank=rank, world=world, **settings) for rank in range(world)
    ]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_write_their_parts_and_together_they_are_the_whole(tmp_path, kind, world):
    assert ranks_save(make_ranks(kind, tmp_path, world), (1, 2, 3)) == [None] * world
    assert {path.name for path in tmp_path.iterdir()} == {
        "latest",
        "step-00000002",
        "step-00000003",
    }
    path = find_checkpoint(tmp_path)
    shares = {f"optimizer-{rank:05d}-of-{world:05d}.safetensors" for rank in range(world)}
    files = {"model.safetensors"} | shares
    assert {file.name for file in path.iterdir()} == files | {"checkpoint.json"}
    assert set(read_meta(path).files) == files
    assert digest(load_state(path)) == digest(state_of(3))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_rank_that_does_not_deliver_is_named_and_the_last_good_one_stands(tmp_path, kind):
    assert ranks_save(make_ranks(kind, tmp_path, 2), (1,)) == [None] * 2
    first, _ = make_ranks(kind, tmp_path, 2, timeout=SHORT)
    with pytest.raises(RunError, match=r"step 2 .*rank 1 did not deliver within") as error, first:
        first.save(share(state_of(2), 0, 2), toy_meta(2))
    assert f"{tmp_path / 'step-00000001'} stands" in str(error.value)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-00000001"]
    assert not (tmp_path / "step-00000002.partial").exists()


@pytest.mark.parametrize("kind", WRITERS)
def test_a_first_rank_that_does_not_publish_is_named(tmp_path, kind):
    _, second = make_ranks(kind, tmp_path, 2, timeout=SHORT)
    with pytest.raises(RunError, match=r"rank 0 did not publish it within"), second:
        second.save(share(state_of(2), 1, 2), toy_meta(2))


def test_rank_0_may_publish_the_moment_a_part_stands(tmp_path, monkeypatch):
    folder, replace = tmp_path / "step-00000001.partial", Path.replace
    folder.mkdir()

    def and_publish(path, target):
        replace(path, target)
        folder.rename(tmp_path / "step-00000001")

    monkeypatch.setattr(Path, "replace", and_publish)
    module._Part().write(folder, 1)
    assert [path.name for path in tmp_path.glob("*/*")] == ["rank-00001.done"]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_tells_the_others(tmp_path, monkeypatch, kind, failing):
    assert ranks_save(make_ranks(kind, tmp_path, 3), (1,)) == [None] * 3

    def save_file(tensors, file):
        if file.name.startswith(f"optimizer-{failing:05d}"):
            raise FULL
        SAVE_FILE(tensors, file)

    monkeypatch.setattr(module, "save_file", save_file)
    raised = ranks_save(make_ranks(kind, tmp_path, 3), (2,))
    for rank, message in enumerate(raised):
        assert message is not None
        assert "the checkpoint of step 2 could not be saved" in message
        assert f"{tmp_path / 'step-00000001'} stands" in message
        if rank == 0 or failing == 0:  # what rank 0 raised or told
            assert "No space left on device" in message
    if failing == 1:
        assert "rank 1: [Errno 28] No space left on device" in raised[0]
        assert raised[2] == raised[0]
    # All of it is forgotten by the next run.
    monkeypatch.setattr(module, "save_file", SAVE_FILE)
    assert ranks_save(make_ranks(kind, tmp_path, 3), (2,)) == [None] * 3
    assert digest(load_state(find_checkpoint(tmp_path))) == digest(state_of(2))
    assert not list(tmp_path.rglob("*partial*"))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_checkpoint_that_is_not_named_the_latest_fails_on_all_ranks(tmp_path, monkeypatch, kind):
    """Else the others go on to the next one, and wait there for a rank 0 that has ended."""

    def write_atomic(path, text):
        if path.name == "latest":
            raise FULL
        WRITE_ATOMIC(path, text)

    monkeypatch.setattr(module, "write_atomic", write_atomic)
    for message in ranks_save(make_ranks(kind, tmp_path, 2), (1,)):
        assert message is not None
        assert "the checkpoint of step 1 could not be saved" in message
        assert "No space left on device" in message


def test_a_rank_that_ends_by_an_error_does_not_wait_long_for_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GRACE", SHORT)
    first, _ = make_ranks(BackgroundWriter, tmp_path, 2)
    begun = time.monotonic()
    with pytest.raises(RunError, match="the other rank is gone") as error:
        run_that_ends_by(RunError("the other rank is gone"), first, share(state_of(1), 0, 2))
    assert time.monotonic() - begun < 5
    assert "rank 1 did not deliver" in error.value.__notes__[0]


# In a run.


def test_a_run_writes_the_same_either_way(tmp_path):
    assert isinstance(open_writer(tmp_path, toy_settings(), Ranks()), BackgroundWriter)
    for name, behind in (("plain", False), ("behind", True)):
        toy_train(tmp_path / name, toy_engine(), toy_settings(background_save=behind))
    plain, behind = (load_state(find_checkpoint(tmp_path / name)) for name in ("plain", "behind"))
    assert digest(plain) == digest(behind)
    folders = [tmp_path / name / "checkpoints" for name in ("plain", "behind")]
    weights = [
        {name: text for name, text in contents(folder).items() if name.endswith("safetensors")}
        for folder in folders
    ]
    assert weights[0] == weights[1]
    assert len(weights[0]) == 4


def test_a_checkpoint_that_fails_ends_the_run_after_the_step_at_hand(tmp_path, monkeypatch):
    def save_file(tensors, file):
        if "step-00000008" in str(file):
            raise FULL
        SAVE_FILE(tensors, file)

    def batches(start, stop):
        for step, micro_batches in zip(range(start, stop), toy_batches(start, stop), strict=True):
            if step == 9:
                wait_until(lambda: not writers_at_work())
            yield micro_batches

    monkeypatch.setattr(module, "save_file", save_file)
    engine = toy_engine()
    with pytest.raises(RunError, match=r"checkpoint of step 8 .*step-00000004 stands"):
        toy_train(tmp_path, engine, toy_settings(), batches=batches)
    assert engine.steps_done in (9, 10)
    monkeypatch.undo()
    resumed, whole = toy_engine(), toy_engine()
    toy_train(tmp_path, resumed, toy_settings(), resume=True)
    toy_train(tmp_path.with_name("whole"), whole, toy_settings())
    assert digest(resumed.state()) == digest(whole.state())


def test_the_last_checkpoint_of_a_run_is_waited_for(tmp_path, monkeypatch):
    def slow(tensors, file):
        time.sleep(0.1)
        SAVE_FILE(tensors, file)

    monkeypatch.setattr(module, "save_file", slow)
    result = toy_train(tmp_path, toy_engine(), toy_settings(steps=3))
    assert find_checkpoint(tmp_path) == result.checkpoint
    assert not writers_at_work()


def test_a_changed_bit_stops_a_resume(tmp_path):
    toy_train(tmp_path, toy_engine(), toy_settings(steps=8))
    file = find_checkpoint(tmp_path) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not what.*step-00000004"):
        toy_train(tmp_path, toy_engine(), toy_settings(), resume=True)


KILLED_WHILE_WRITING = """
import sys, time
from pathlib import Path
import torch
import toto.training.checkpoint_writer as module
from toy_training import toy_engine, toy_settings, toy_train

def save_file(tensors, file, real=module.save_file):
    if "step-00000008" not in str(file) or file.name == "model.safetensors":
        return real(tensors, file)
    Path(file).write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)

module.save_file = save_file
torch.set_num_threads(1)
toy_train(Path(sys.argv[1]), toy_engine(steps=12), toy_settings(steps=12))
"""


def test_sigkill_while_one_is_written_leaves_the_one_before_and_the_run_goes_on(tmp_path):
    paths = [str(Path(__file__).parent), *sys.path]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path / "cut")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    folder = tmp_path / "cut" / "checkpoints"
    assert (folder / "step-00000008.partial" / "model.safetensors").is_file()
    assert find_checkpoint(tmp_path / "cut").name == "step-00000004"
    resumed, whole = toy_engine(ToyTask(), steps=12), toy_engine(ToyTask(), steps=12)
    toy_train(tmp_path / "cut", resumed, toy_settings(steps=12), resume=True)
    toy_train(tmp_path / "whole", whole, toy_settings(steps=12))
    assert digest(resumed.state()) == digest(whole.state())
    assert not list(folder.glob("*partial*"))
