"""Every command of docs/generate.md, run one after the other as a reader would."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

from command_line import newest, toto, write_recipe
from tiny_runs import tiny_recipe

DOC = (Path(__file__).parents[2] / "docs/generate.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    lines = [
        line
        for block in re.findall(r"```console\n(.*?)```", DOC, re.DOTALL)
        for line in block.splitlines()
    ]
    assert all(line.startswith("$ toto generate runs/quickstart") for line in lines)
    return [shlex.split(line[2:]) for line in lines]


def test_every_command_runs(tmp_path, tiny_datasets, tiny_folders):
    raw = tiny_recipe(tiny_datasets, steps=2, eval_every=2, eval_sequences=1)
    recipe = write_recipe(tmp_path, raw)
    toto("train", recipe, "--output", "runs/quickstart", cwd=tmp_path)
    shutil.copy(tiny_folders / "videos-val/down/100.mp4", tmp_path / "clip.mp4")
    for number, name in enumerate(("picture", "a", "b", "query")):
        shutil.copy(tiny_folders / f"pictures/{number}.png", tmp_path / f"{name}.png")
    samples = {}
    for command in commands():
        toto(*command[1:], cwd=tmp_path)
        out = command[command.index("--out") + 1] if "--out" in command else command[2]
        folder = tmp_path / out if "--out" in command else newest(tmp_path / out, "generate")
        samples[out] = len(json.loads((folder / "generated.json").read_text())["samples"])
    assert samples == {
        "runs/quickstart": 3, "continued": 3, "both": 4, "videos": 4, "pictures": 3,
        "several-pictures": 3, "answer": 3, "sampled": 3, "greedy": 1,
    }  # fmt: skip
