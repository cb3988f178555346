"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from command_line import toto, write_recipe
from tiny_runs import tiny_recipe

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SMALL = {
    "training.steps": 2,
    "schedule.warmup_steps": 1,
    "clip.frames": 2,
    "clip.stride": 1,
    "clip.resolution": 32,
    "training.batch_tokens": 64,
    "training.micro_batch": 2,
    "training.compile": "false",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ toto ")]


def test_the_tokenizer_of_the_readme_is_short_and_works(tmp_path, tiny_datasets):
    (block,) = [block for block in blocks("python") if "register_tokenizer" in block]
    assert len(block.splitlines()) < 30
    (tmp_path / "grey.py").write_text(block)
    raw = tiny_recipe(tiny_datasets, steps=2) | {"imports": ["grey.py"], "tokenizer": "grey"}
    write_recipe(tmp_path, raw, "my_recipe.yaml")
    ours = [
        command for command in commands() if "grey.py" in command or "my_recipe.yaml" in command
    ]
    assert len(ours) == 2
    for command in ours:
        toto(*command[1:], cwd=tmp_path)


def test_the_program_of_the_readme_runs(tmp_path, tiny_datasets, monkeypatch):
    (block,) = [block for block in blocks("python") if "toto.load" in block]
    raw = tiny_recipe(tiny_datasets, steps=2)
    raw["backbone"]["num_layers"] = 3
    toto("train", write_recipe(tmp_path, raw), "--output", "runs/quickstart", cwd=tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {"pixels_BTCHW": torch.rand(1, 2, 3, 32, 32)}
    exec(block, names)
    assert names["features"].shape == (1, 2, 4, 4, 64)
    assert names["video_BTCHW"].shape == (1, 10, 3, 32, 32)


def test_the_errors_of_the_readme_are_those_printed(tmp_path):
    (block,) = [block for block in blocks("console") if "\nerror:" in block]
    command, _, printed = block.partition("\n")
    outcome = toto(*shlex.split(command[2:])[1:], cwd=tmp_path, code=2)
    shown = re.sub(r"error: \S*recipes/", "error: recipes/", outcome.stderr)
    assert shown.split() == printed.split()


def test_your_own_data_commands_run_one_after_the_other(tmp_path, tiny_folders):
    folders = {
        "my-videos": "videos-train",
        "my-held-out-videos": "videos-val",
        "my-pictures": "pictures",
        "my-held-out-pictures": "pictures",
    }
    for name, source in folders.items():
        shutil.copytree(tiny_folders / source, tmp_path / name)
    verbs = [command[1] for command in commands()]
    sequence = commands()[verbs.index("pack") : verbs.index("finetune")]
    shrink = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    extra = {"show": shrink, "train": shrink, "probe": ["--set", "epochs=1"]}
    for command in sequence:
        toto(*command[1:], *extra.get(command[1], []), cwd=tmp_path)
    assert {command[1] for command in sequence} == {
        "pack", "show", "train", "tokenizer", "tokenize", "analyze", "probe",
    }  # fmt: skip


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_names_verbs_and_options_that_exist(tmp_path, command):
    help_text = " ".join(toto(*command_path(command), "--help", cwd=tmp_path).stdout.split())
    for option in (part for part in command if part.startswith("--")):
        assert option in help_text


def command_path(command: list[str]) -> list[str]:
    return command[1:3] if command[1] in {"tokenizer", "weights", "analyze"} else command[1:2]
