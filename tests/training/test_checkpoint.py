from __future__ import annotations

import errno
import hashlib
import json

import pytest
import torch
from torch import nn
from toy_training import ToyTask, digest, toy_batch, toy_engine, toy_meta

import toto.training.checkpoint_writer as module
from toto.errors import CheckpointError, RunError
from toto.training.checkpoint import (
    complete_checkpoints,
    find_checkpoint,
    load_state,
    load_weights,
    read_meta,
    unshared_tensors,
    verify,
)
from toto.training.checkpoint_background import BackgroundWriter
from toto.training.checkpoint_writer import CheckpointWriter

OPTIMIZER = "optimizer-00000-of-00001.safetensors"
WRITERS = [CheckpointWriter, BackgroundWriter]


@pytest.fixture
def engine():
    engine = toy_engine()
    engine.step([toy_batch(0)])
    return engine


def save(run, engine, step, keep=2, kind=CheckpointWriter):
    with kind(folder=run / "checkpoints", keep=keep) as writer:
        return writer.save(engine.state(), toy_meta(step))


def test_a_checkpoint_holds_everything_and_describes_itself(tmp_path, engine):
    path = save(tmp_path, engine, 1)
    assert path == tmp_path / "checkpoints" / "step-00000001"
    assert {file.name for file in path.iterdir()} == {
        "model.safetensors",
        OPTIMIZER,
        "checkpoint.json",
    }
    assert digest(load_state(path)) == digest(engine.state())
    found = read_meta(path)
    content = (path / "model.safetensors").read_bytes()
    record = found.files["model.safetensors"]
    assert (record.size, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert found.model_copy(update={"files": {}}) == toy_meta(1)


def test_the_newest_are_kept_and_latest_names_the_last(tmp_path, engine):
    for step in (1, 2, 3, 4):
        save(tmp_path, engine, step, keep=2)
    folder = tmp_path / "checkpoints"
    assert [p.name for p in complete_checkpoints(folder)] == ["step-00000003", "step-00000004"]
    assert (folder / "latest").read_text() == "step-00000004\n"


def test_run_checkpoints_folder_and_checkpoint_are_all_found(tmp_path, engine):
    path = save(tmp_path, engine, 1)
    for given in (tmp_path, path.parent, path):
        assert find_checkpoint(given) == path


def test_latest_decides_and_a_lost_one_does_not_matter(tmp_path, engine):
    first, second = save(tmp_path, engine, 1), save(tmp_path, engine, 2)
    latest = first.parent / "latest"
    latest.write_text(first.name + "\n")
    assert find_checkpoint(tmp_path) == first
    for lost in ("step-00000009\n", ""):
        latest.write_text(lost)
        assert find_checkpoint(tmp_path) == second
    latest.unlink()
    assert find_checkpoint(tmp_path) == second


SAVING = [OPTIMIZER, "checkpoint.json", "rename", "latest"]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("killed_at", SAVING)
def test_a_kill_while_saving_leaves_the_last_good_one(
    tmp_path, engine, monkeypatch, killed_at, kind
):
    good = save(tmp_path, engine, 1)
    expected = digest(load_state(good))
    engine.step([toy_batch(1)])

    class Killed(BaseException):
        pass

    def kill(*args, **kwargs):
        raise Killed

    def kill_if(original, matches):
        return lambda *args, **kwargs: kill() if matches(*args) else original(*args, **kwargs)

    with monkeypatch.context() as patch:
        if killed_at == "rename":
            patch.setattr(module, "sync", kill_if(module.sync, lambda path: path.is_dir()))
            patch.setattr(type(tmp_path), "rename", kill)
        elif killed_at == OPTIMIZER:
            save_file = module.save_file
            patch.setattr(module, "save_file", kill_if(save_file, lambda t, p: p.name == killed_at))
        else:
            write = module.write_atomic
            patch.setattr(
                module, "write_atomic", kill_if(write, lambda path, text: path.name == killed_at)
            )
        with pytest.raises(Killed):
            save(tmp_path, engine, 2, kind=kind)

    assert find_checkpoint(tmp_path) == good
    assert digest(load_state(find_checkpoint(tmp_path))) == expected
    after = save(tmp_path, engine, 2, kind=kind)
    assert find_checkpoint(tmp_path) == after
    assert digest(load_state(after)) == digest(engine.state())
    assert not list(tmp_path.rglob("*partial*"))


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_removes_the_half_and_names_the_last_good_one(
    tmp_path, engine, monkeypatch, kind
):
    good = save(tmp_path, engine, 1)
    with monkeypatch.context() as patch:
        patch.setattr(module, "sync", full)
        with pytest.raises(RunError, match=r"step 2 .* No space left on device") as error:
            save(tmp_path, engine, 2, kind=kind)
    assert str(good) in str(error.value)
    assert "--resume" in str(error.value)
    assert [path.name for path in good.parent.iterdir() if path.is_dir()] == [good.name]
    assert find_checkpoint(tmp_path) == good


@pytest.mark.parametrize("kind", WRITERS)
def test_a_write_that_the_system_refuses_is_handled_alike(tmp_path, engine, kind):
    resource = pytest.importorskip("resource")
    big = nn.Linear(100, 100)
    state = engine.state()
    state.model.update(big.state_dict())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with (
            pytest.raises(RunError, match=r"could not be saved .*no earlier checkpoint"),
            kind(folder=tmp_path, keep=1) as writer,
        ):
            writer.save(state, toy_meta(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_run_names_those_beside_it(tmp_path, engine):
    with pytest.raises(CheckpointError, match=r"no run at .*gone.*toto train RECIPE"):
        find_checkpoint(tmp_path / "gone")
    save(tmp_path / "here", engine, 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError) as error:
        find_checkpoint(tmp_path / "gone")
    assert str(tmp_path / "here") in str(error.value)
    assert "empty" not in str(error.value)


def test_a_run_without_a_complete_checkpoint_is_refused(tmp_path, engine):
    (tmp_path / "checkpoints" / "step-00000001.partial").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000001.partial" / "checkpoint.json").write_text("{}")
    for path in (tmp_path, tmp_path / "checkpoints"):
        with pytest.raises(CheckpointError, match="no complete checkpoint"):
            find_checkpoint(path)


@pytest.mark.parametrize("name", ["model.safetensors", OPTIMIZER])
def test_a_truncated_or_missing_file_is_named_and_another_checkpoint_offered(
    tmp_path, engine, name
):
    other, path = save(tmp_path, engine, 1), save(tmp_path, engine, 2)
    file = path / name
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    message = f"{name} has {len(content) - 10:,} bytes where {len(content):,}"
    with pytest.raises(CheckpointError, match=message) as error:
        load_state(path)
    assert str(other) in str(error.value)
    file.unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        read_meta(path)


def test_a_file_of_the_right_size_that_is_no_safetensors_is_refused(tmp_path, engine):
    path = save(tmp_path, engine, 1)
    file = path / "model.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        load_state(path)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"format_version": 9}, "format_version"), ({"step": -1}, "step"), ({"odd": 1}, "odd")],
)
def test_a_description_of_another_format_is_refused(tmp_path, engine, change, named):
    path = save(tmp_path, engine, 1)
    file = path / "checkpoint.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=rf"checkpoint\.json is not readable: {named}"):
        read_meta(path)
    file.write_text("{")
    with pytest.raises(CheckpointError, match=r"checkpoint\.json is not readable"):
        read_meta(path)


def test_weights_load_strictly_into_a_module(tmp_path, engine):
    path = save(tmp_path, engine, 1)
    net = ToyTask().net
    assert load_weights(path, net).step == 1
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, engine.state().model[name])
    with pytest.raises(CheckpointError, match=r"missing: 3\.weight, 3\.bias"):
        load_weights(path, nn.Sequential(*net, nn.Linear(1, 1)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 2)
        self.readout = nn.Linear(2, 3, bias=False)
        self.readout.weight = self.embed.weight


def test_a_tensor_under_two_names_is_saved_once_and_loads_under_both(tmp_path, engine):
    tied, other = Tied(), Tied()
    state = engine.state()
    state.model.clear()
    state.model.update(unshared_tensors(tied))
    assert list(state.model) == ["embed.weight"]
    path = CheckpointWriter(folder=tmp_path, keep=1).save(state, toy_meta(1))
    load_weights(path, other)
    assert torch.equal(other.readout.weight, tied.embed.weight)
    assert other.readout.weight is other.embed.weight


def test_an_existing_folder_of_the_same_step_is_replaced(tmp_path, engine):
    first = save(tmp_path, engine, 2)
    engine.step([toy_batch(1)])
    assert digest(load_state(first)) != digest(engine.state())
    assert save(tmp_path, engine, 2) == first
    assert digest(load_state(first)) == digest(engine.state())


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", OPTIMIZER])
def test_a_changed_bit_is_found_before_a_run_goes_on(tmp_path, engine, name):
    for step in (1, 2, 3):
        verify(save(tmp_path, engine, step, keep=3))
    first, second, third = complete_checkpoints(tmp_path / "checkpoints")
    flip_a_bit(third / name)
    flip_a_bit(second / "model.safetensors")
    read_meta(third)  # sizes alone
    with pytest.raises(CheckpointError, match=f"the content of {name} is not what") as error:
        verify(third)
    assert f"{first} is another of the run" in str(error.value)
    flip_a_bit(first / "model.safetensors")
    with pytest.raises(CheckpointError, match="no other checkpoint"):
        verify(third)


def test_a_checkpoint_of_format_1_loads(tmp_path, engine):
    path = save(tmp_path, engine, 1)
    old = (path / OPTIMIZER).rename(path / "optimizer.safetensors")
    meta = json.loads((path / "checkpoint.json").read_text())
    sizes = {"model.safetensors": (path / "model.safetensors").stat().st_size}
    sizes[old.name] = old.stat().st_size
    meta |= {"format_version": 1, "files": sizes}
    (path / "checkpoint.json").write_text(json.dumps(meta))
    verify(path)
    assert digest(load_state(path)) == digest(engine.state())
    load_weights(path, ToyTask().net)
    old.write_bytes(old.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors has"):
        verify(path)
