"""Every command of docs/tokenizers.md, section by section, as a reader would run them."""

from __future__ import annotations

import re
import shlex
import shutil
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import newest, toto

from toto.tokenizers.config import VqganConfig
from toto.tokenizers.official import OFFICIAL

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs/tokenizers.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in re.split(r"^## ", DOC, flags=re.MULTILINE)}
SMALL_VQGAN = {
    "num_codes": 16, "code_dim": 8, "latent_dim": 8, "width": 32, "blocks_per_level": 1,
    "width_multipliers": [1, 1, 1, 1], "attention_levels": [3],
}  # fmt: skip
SHORT = ["training.steps=2", "schedule.warmup_steps=1", "training.compile=false"]
SHORT += ["training.micro_batch=2", "training.eval_sequences=2"]
SETTINGS = {
    "tokenizer train": [*SHORT, "training.batch_tokens=128", "tokenizer.width=16"],
    "train": [*SHORT, "training.batch_tokens=256", "clip.frames=2", "backbone.preset=tiny"],
    "probe": ["epochs=1"],
}


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], re.DOTALL)


def lines(section: str) -> list[str]:
    found = [line for block in blocks(section, "console") for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in found)
    return [line[2:] for line in found]


def run(section: str, folder: Path) -> None:
    for line in lines(section):
        if line.endswith("# network"):
            continue
        command = shlex.split(line, comments=True)
        assert command[0] == "toto"
        verb = " ".join(command[1:3] if command[1] == "tokenizer" else command[1:2])
        small = [part for value in SETTINGS.get(verb, []) for part in ("--set", value)]
        toto(*command[1:], *small, cwd=folder)


@pytest.fixture
def folder(tmp_path, tiny_datasets, monkeypatch) -> Path:
    """Where a reader stands: the samples, their own pictures, and a checkpoint they fetched."""
    data = tmp_path / "data"
    for split in ("train", "val"):
        for name in ("digits", "photographs", "clips"):
            shutil.copytree(tiny_datasets / f"videos-{split}", data / f"samples/{name}-{split}")
    for name in ("my-pictures", "my-pictures-val"):
        shutil.copytree(tiny_datasets / "pictures", data / name)
    sizes = replace(OFFICIAL["vqgan-1024"], sizes=SMALL_VQGAN)
    monkeypatch.setitem(OFFICIAL, "vqgan-1024", sizes)
    monkeypatch.setenv("TOTO_HOME", str(tmp_path / "home"))
    state = VqganConfig(weights="random:0", **SMALL_VQGAN).build().state_dict()
    (tmp_path / "downloads").mkdir()
    torch.save({"state_dict": OrderedDict(state)}, tmp_path / "downloads/last.ckpt")
    return tmp_path


def test_which_there_are_and_judging_them(folder):
    run("Which there are", folder)
    assert (folder / "home/weights/vqgan-1024.safetensors").is_file()
    assert (folder / "vqgan.safetensors").is_file()
    run("Judge one", folder)
    assert (folder / "quality/reconstructions.png").is_file()
    assert (folder / "ngrams/ngrams.png").is_file()


def test_training_one(folder):
    for name, text in zip(("my_dvae", "my_vqgan"), blocks("Train one", "yaml"), strict=True):
        assert f"`{name}.yaml`:\n" in SECTIONS["Train one"]
        (folder / f"{name}.yaml").write_text(text)
    run("Train one", folder)
    assert (folder / "runs/my_vqgan/tokenizer.safetensors").is_file()
    assert (folder / "trained/reconstructions.png").is_file()


def test_writing_one_takes_fewer_than_forty_lines(folder):
    (code,) = blocks("Write one", "python")
    (recipe,) = blocks("Write one", "yaml")
    assert len(code.splitlines()) < 40
    assert code == (ROOT / "examples/own_tokenizer/mosaic_tokenizer.py").read_text()
    (folder / "mosaic.py").write_text(code)
    (folder / "mosaic.yaml").write_text(recipe)
    run("Write one", folder)
    assert (newest(folder / "runs/mosaic", "generate") / "sample-0.png").is_file()


def test_the_tokenizer_and_the_entry_point_are_those_of_the_files(tmp_path):
    (block,) = blocks("As a package", "toml")
    assert block in (ROOT / "examples/own_tokenizer/pyproject.toml").read_text()
    (block,) = blocks("Which there are", "yaml")
    (tmp_path / "a.yaml").write_text(f"base: recipes/quickstart.yaml\n{block}")
    shown = [toto("show", name, cwd=tmp_path).stdout for name in ("a.yaml", "quickstart")]
    ours, shipped = (text[text.index("tokenizer:") :] for text in shown)
    assert ours == shipped


def test_nothing_but_the_network_is_left_out():
    every = [line for section in SECTIONS for line in lines(section)]
    assert [line.split("#")[0].strip() for line in every if line.endswith("# network")] == [
        "toto weights get dvae", "pip install examples/own_tokenizer",
    ]  # fmt: skip
