from __future__ import annotations

import pytest
import torch

import toto.training.machine as machine
from toto.errors import UserError
from toto.training.config import TrainingConfig
from toto.training.machine import resolve_machine, versions


@pytest.fixture(autouse=True)
def _cpu_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda name: "/include")
    monkeypatch.setattr(machine.Path, "is_file", lambda path: True)


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_settled_by_what_the_cpu_multiplies(monkeypatch, native, precision):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    resolved, notes = resolve_machine(TrainingConfig(steps=1))
    assert (resolved.device, resolved.precision, resolved.compile) == ("cpu", precision, True)
    assert notes == []


def test_bf16_that_was_asked_for_is_kept_with_a_note(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    resolved, notes = resolve_machine(TrainingConfig(steps=1, precision="bf16"))
    assert resolved.precision == "bf16"
    assert len(notes) == 1
    assert "slow" in notes[0]


def test_without_a_compiler_the_run_is_eager_and_says_so_once(monkeypatch):
    monkeypatch.setenv("CXX", "my-c++")
    asked = []
    monkeypatch.setattr(machine.shutil, "which", lambda name: asked.append(name))
    resolved, notes = resolve_machine(TrainingConfig(steps=1))
    assert not resolved.compile
    assert asked == ["my-c++"]
    assert len(notes) == 1
    assert "my-c++" in notes[0]
    assert resolve_machine(TrainingConfig(steps=1, compile=False))[1] == []


def test_without_pythons_headers_the_run_is_eager(monkeypatch):
    monkeypatch.setattr(machine.Path, "is_file", lambda path: False)
    resolved, notes = resolve_machine(TrainingConfig(steps=1))
    assert not resolved.compile
    assert "python3-dev" in notes[0]


def test_cuda_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"training\.device"):
        resolve_machine(TrainingConfig(steps=1, device="cuda"))


def test_a_gpu_is_taken_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    resolved, notes = resolve_machine(TrainingConfig(steps=1))
    assert (resolved.device, resolved.precision, resolved.compile) == ("cuda", "fp32", True)
    assert notes == []


def test_versions_are_plain_and_complete():
    found = versions()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    always = {"toto", "torch", "python", "platform", "cpu", "gpu", "threads"}
    assert set(found) - {"deepspeed"} == always


def test_the_engine_follows_from_the_number_of_ranks():
    assert resolve_machine(TrainingConfig(steps=1))[0].engine == "local"
    assert resolve_machine(TrainingConfig(steps=1), world=2)[0].engine == "deepspeed"
    asked = TrainingConfig(steps=1, engine="deepspeed")
    assert resolve_machine(asked)[0].engine == "deepspeed"
    with pytest.raises(UserError, match=r"training\.engine: local is one process, and 2 ranks"):
        resolve_machine(TrainingConfig(steps=1, engine="local"), world=2)


def test_deepspeed_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="deepspeed is not installed: pip install deepspeed"):
        resolve_machine(TrainingConfig(steps=1), world=2)
