from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from toto.errors import CheckpointError, RunError
from toto.tokenizers.config import DvaeConfig
from toto.tokenizers.dvae import Dvae
from toto.tokenizers.weights import read_identity, save_weights, shipped_weights

TINY = DvaeConfig(weights="random:0", width=8, num_codes=32, blocks_per_group=1, decoder_stem=8)


def build(**changes: object) -> Dvae:
    dvae = DvaeConfig.model_validate({**TINY.model_dump(), **changes}).build()
    assert isinstance(dvae, Dvae)
    return dvae


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_weights(build(), path)
    return path


def test_saved_weights_load_exactly(file: Path) -> None:
    original, loaded = build(), build(weights=str(file))
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(original.encode(x).codes_BHW, loaded.encode(x).codes_BHW)


def test_fingerprint_follows_the_weights_and_not_their_place(file: Path) -> None:
    moved = file.rename(file.with_name("elsewhere.safetensors"))
    loaded = build(weights=str(moved))
    fingerprint = loaded.fingerprint()
    assert fingerprint == build().fingerprint()
    with torch.no_grad():
        loaded.encoder.blocks.get_parameter("input.b")[0] += 1e-3
    assert loaded.fingerprint() != fingerprint


def test_file_says_what_it_is_and_holds_plain_layout(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        identity = json.loads(opened.metadata()["tokenizer"])
        assert opened.get_tensor("encoder.blocks.input.w").is_contiguous()
    assert identity["name"] == "dvae"
    assert identity["num_codes"] == 32
    assert "weights" not in identity


def test_saving_leaves_nothing_half_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def full_disk(path: Path, content: bytes) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(RunError, match="No space left"):
        save_weights(build(weights="random:1"), file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_a_relative_path_starts_at_the_working_directory(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    assert build(weights=file.name).fingerprint() == build().fingerprint()


def test_a_file_of_other_sizes_is_refused_with_the_first_differences(file: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        build(weights=str(file), num_codes=64)
    message = str(error.value)
    assert str(file) in message
    assert "num_codes: 32 in the file, 64 in the recipe" in message
    assert "encoder.blocks.output.conv.w: 32×64×1×1 in the file, 64×64×1×1 wanted" in message
    assert "Write the file's values" in message


def test_missing_and_surplus_tensors_are_named(file: Path, tmp_path: Path) -> None:
    tensors = {name: t.contiguous() for name, t in build().state_dict().items()}
    del tensors["encoder.blocks.input.b"]
    tensors["encoder.surplus"] = torch.zeros(2)
    path = tmp_path / "other.safetensors"
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as error:
        build(weights=str(path))
    message = str(error.value)
    assert "it does not say which tokenizer it was made for" in message
    assert "encoder.blocks.input.b: missing in the file, 8 wanted" in message
    assert "encoder.surplus: 2 in the file, missing wanted" in message


def test_tensors_of_another_number_type_are_refused(tmp_path: Path) -> None:
    tensors = {name: t.contiguous() for name, t in build().state_dict().items()}
    tensors["encoder.blocks.input.b"] = tensors["encoder.blocks.input.b"].to(torch.int8)
    path = tmp_path / "int8.safetensors"
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"input\.b: 8 int8 in the file, 8 wanted"):
        build(weights=str(path))


def test_a_file_made_for_another_tokenizer_is_refused_though_its_tensors_fit(
    tmp_path: Path,
) -> None:
    path = tmp_path / "other.safetensors"
    tensors = {name: t.contiguous() for name, t in build().state_dict().items()}
    save_file(tensors, path, metadata={"tokenizer": '{"name": "theirs"}'})
    with pytest.raises(CheckpointError, match='name: "theirs" in the file, "dvae" in the recipe'):
        build(weights=str(path))


def test_a_file_without_metadata_loads_when_its_tensors_fit(tmp_path: Path) -> None:
    path = tmp_path / "converted.safetensors"
    save_file({name: t.contiguous() for name, t in build().state_dict().items()}, path)
    assert build(weights=str(path)).fingerprint() == build().fingerprint()


@pytest.mark.parametrize("said", ["not json", "[1]", ""])
def test_metadata_of_another_kind_is_refused(tmp_path: Path, said: str) -> None:
    path = tmp_path / "other.safetensors"
    tensors = {name: t.contiguous() for name, t in build().state_dict().items()}
    save_file(tensors, path, metadata={"tokenizer": said})
    for read in (lambda: build(weights=str(path)), lambda: read_identity(str(path))):
        with pytest.raises(CheckpointError, match="no config as toto writes it"):
            read()


def test_a_weight_under_two_names_is_saved_under_both(tmp_path: Path) -> None:
    tied = build()
    tied.encoder.get_submodule("blocks.input").w = tied.encoder.get_submodule(
        "blocks.output.conv"
    ).w
    save_weights(tied, tmp_path / "tied.safetensors")
    with safe_open(tmp_path / "tied.safetensors", framework="pt") as opened:
        first, second = (
            opened.get_tensor(f"encoder.blocks.{name}.w") for name in ("input", "output.conv")
        )
    assert torch.equal(first, second)


def test_a_missing_file_is_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as error:
        build(weights="no/such.safetensors")
    assert str(tmp_path / "no" / "such.safetensors") in str(error.value)


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        build(weights=str(path))


def test_an_unknown_shipped_name_lists_the_shipped_ones() -> None:
    with pytest.raises(CheckpointError) as error:
        build(weights="toto:dvae-enormous")
    assert "unknown shipped weights 'dvae-enormous'" in str(error.value)
    for name in shipped_weights():
        assert name in str(error.value)
