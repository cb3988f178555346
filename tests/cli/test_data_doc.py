"""Every command of docs/data.md, run one after the other as a reader would."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import yaml
from command_line import toto, write_recipe
from tiny_runs import tiny_recipe

DOC = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
FOLDERS = {
    "my-videos": "videos-train",
    "my-held-out-videos": "videos-val",
    "my-pictures": "pictures",
    "my-held-out-pictures": "pictures",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOC, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert all(line.startswith("$ toto ") for line in lines)
    return [shlex.split(line[2:], comments=True) for line in lines]


def test_every_command_runs(tmp_path, tiny_folders):
    for name, source in FOLDERS.items():
        shutil.copytree(tiny_folders / source, tmp_path / name)
    (block,) = blocks("yaml")
    data = yaml.safe_load(block)["data"]
    raw = tiny_recipe(tmp_path, steps=2, batch_tokens=5 * 2 * 16)
    raw |= {"data": data, "clip": {"frames": 2, "stride": 1, "resolution": 32}}
    write_recipe(tmp_path, raw, "my_mixture.yaml")
    for command in commands():
        toto(*command[1:], cwd=tmp_path)
    verbs = {command[1] for command in commands()}
    assert verbs == {
        "pack", "doctor", "view", "tokenize", "tokenizer", "analyze", "stream", "train",
    }  # fmt: skip
    assert (tmp_path / "videos.html").is_file()
    assert (tmp_path / "tokens.html").is_file()
    assert (tmp_path / "quality/reconstructions.png").is_file()
    assert (tmp_path / "ngrams/ngrams.png").is_file()
