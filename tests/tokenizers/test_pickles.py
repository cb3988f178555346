"""What torch.save wrote is read, and nothing that it names is run."""

from __future__ import annotations

import io
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.hub
from pickled import Call, made_up, touching

from toto.errors import CheckpointError
from toto.tokenizers.pickles import INERT, Inert, read_pickled

ENCODER = "dall_e.encoder.Encoder"
CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "was-run"


def saved(tmp_path: Path, content: object, **settings: Any) -> Path:
    path = tmp_path / "file.pkl"
    torch.save(content, path, **settings)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        read_pickled(path)
    return str(error.value)


def test_tensors_and_containers_come_as_they_were(tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    path = saved(tmp_path, {"state_dict": {"a": weight.t()}, "epoch": 3, "names": ["x", (1, 2.5)]})
    content = read_pickled(path)
    assert isinstance(content, dict)
    assert torch.equal(content["state_dict"]["a"], weight.t())
    assert (content["epoch"], content["names"]) == (3, ["x", (1, 2.5)])


@pytest.mark.parametrize("name", INERT)
def test_known_classes_become_objects_that_can_do_nothing(tmp_path: Path, name: str) -> None:
    with made_up(name) as (cls,):
        instance = cls()
        instance.kept = torch.ones(2)  # type: ignore[attr-defined]
        path = saved(tmp_path, {cls: instance})
    ((key, found),) = read_pickled(path).items()  # type: ignore[attr-defined]
    assert isinstance(found, Inert)
    assert key is type(found)
    assert found.stands_for == name
    assert torch.equal(found.state["kept"], torch.ones(2))


def test_scalars_of_numpy_are_stood_in_for(tmp_path: Path) -> None:
    content = read_pickled(saved(tmp_path, {"score": np.float64(0.5), "step": np.int32(3)}))
    assert isinstance(content, dict)
    assert all(isinstance(value, Inert) for value in content.values())


def test_tensors_of_a_gpu_come_to_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")
    path = saved(tmp_path, [torch.ones(2)])
    (tensor,) = read_pickled(path)  # type: ignore[misc]
    assert tensor.device.type == "cpu"


@pytest.mark.parametrize("place", ["whole", "nested", "state", "argument"])
def test_a_call_is_refused_by_name_and_never_made(tmp_path: Path, mark: Path, place: str) -> None:
    evil = touching(mark)
    with made_up(ENCODER) as (cls,):
        module = cls()
        module.__dict__.update(_modules={"blocks": evil})
        content = {
            "whole": evil,
            "nested": {"state_dict": {"encoder": [torch.ones(1), (evil,)]}},
            "state": module,
            "argument": Call(cls, evil),
        }[place]
        path = saved(tmp_path, content)
    message = refusal(path)
    assert "system" in message
    assert "Nothing of it was run" in message
    assert str(path) in message
    assert not mark.exists()
    with made_up(ENCODER), suppress(TypeError):  # object() takes no argument
        torch.load(path, weights_only=False)
    assert mark.exists(), "read carelessly, it would have run"


@pytest.mark.parametrize(
    ("function", "name"), [(eval, "builtins.eval"), (torch.hub.load, "torch.hub.load")]
)
def test_every_unknown_name_is_said(
    tmp_path: Path, mark: Path, function: object, name: str
) -> None:
    content = {"a": Call(function, f"open({str(mark)!r}, 'w')"), "b": touching(mark)}
    message = refusal(saved(tmp_path, content))
    assert name in message
    assert "system" in message
    assert not mark.exists()


def test_a_stand_in_runs_nothing_that_it_is_given(tmp_path: Path) -> None:
    with made_up(ENCODER, CALLBACK) as (encoder, callback):
        instance = encoder()
        instance.__dict__.update({"__class__": callback, "__setstate__": callback, "forward": 1})
        path = saved(tmp_path, [Call(callback, "rm", 1), instance])
    called, built = read_pickled(path)  # type: ignore[misc]
    assert (type(called).stands_for, type(built).stands_for) == (CALLBACK, ENCODER)
    assert called.state is None
    assert Inert.__setstate__ is type(built).__setstate__


def test_other_protocols_are_refused_unrun(tmp_path: Path, mark: Path) -> None:
    message = refusal(saved(tmp_path, touching(mark), pickle_protocol=4))
    assert "not as torch.save writes it" in message
    assert not mark.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_bare_pickles_are_refused_unrun(tmp_path: Path, mark: Path, legacy: bool) -> None:
    path = tmp_path / "file.pkl"
    if legacy:
        torch.save(touching(mark), path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(touching(mark)))
    assert "is a bare pickle, as torch saved before 1.6" in refusal(path)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.ones(1)), path)
    assert "torchscript" in refusal(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_damaged(tmp_path: Path, share: float) -> None:
    path = saved(tmp_path, {"state_dict": {"a": torch.randn(1000)}})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    message = refusal(path)
    assert "is damaged" in message
    assert "Fetch it again" in message
    assert len(message) < 300


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_other_files_are_no_files_of_torch(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(content)
    assert "is no file of torch.save" in refusal(path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.pkl").startswith(f"{tmp_path}/none.pkl: No such file")
    assert "Is a directory" in refusal(tmp_path)


def test_what_the_user_allows_elsewhere_is_as_before(tmp_path: Path) -> None:
    before = torch.serialization.get_safe_globals()
    read_pickled(saved(tmp_path, {"a": torch.ones(1)}))
    refusal(saved(tmp_path, io.StringIO))
    assert torch.serialization.get_safe_globals() == before
