"""Every command and the program of docs/models.md, run one after the other as a reader would."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import torch
from command_line import toto, write_recipe
from tiny_runs import tiny_recipe

DOC = (Path(__file__).parents[2] / "docs/models.md").read_text(encoding="utf-8")
SMALLER = ["--widths", "32,64", "--steps", "1"]


def commands() -> list[tuple[list[str], str]]:
    """The words of each command, and the remark behind it."""
    lines = [
        line
        for block in re.findall(r"```console\n(.*?)```", DOC, re.DOTALL)
        for line in block.splitlines()
    ]
    return [
        (shlex.split(line[2:], comments=True), line.partition("#")[2].strip()) for line in lines
    ]


def test_every_command_and_the_program_run(tmp_path, tiny_datasets, monkeypatch):
    raw = tiny_recipe(tiny_datasets, steps=2, eval_every=2, save_every=2, eval_sequences=1)
    write_recipe(tmp_path, raw, "my_recipe.yaml")
    toto("train", "my_recipe.yaml", cwd=tmp_path)
    (tmp_path / "data").symlink_to(tiny_datasets)
    seen = []
    for words, remark in commands():
        code = 2 if remark.startswith("refused") else 0
        extra = SMALLER if "coordinates" in words else []
        toto(*words[1:], *extra, cwd=tmp_path, code=code)
        seen.append(words[1])
    assert seen == ["list", "show", "train", "train", "analyze", "analyze", "export", "export"]
    (program,) = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {"pixels_BTCHW": torch.rand(1, 2, 3, 32, 32)}
    exec(program, names)
    assert names["video_BTCHW"].shape == (1, 4, 3, 32, 32)
