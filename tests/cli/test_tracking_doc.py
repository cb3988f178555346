"""Every command of docs/tracking.md, run one after the other as a reader would."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path

from command_line import newest, toto, write_recipe
from tiny_runs import tiny_recipe
from toy_davis import make_davis

from toto.evaluation.propagation import PRESETS

DOC = (Path(__file__).parents[2] / "docs/tracking.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", DOC, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("$ toto track") for line in lines)
    return [shlex.split(line[2:]) for line in lines]


def test_every_command_runs(tmp_path, tiny_datasets):
    make_davis(tmp_path / "davis", frames=3)
    raw = tiny_recipe(tiny_datasets, steps=2, eval_every=2, eval_sequences=1)
    recipe = write_recipe(tmp_path, raw)
    toto("train", recipe, "--output", "runs/quickstart", cwd=tmp_path)
    for command in commands():
        toto(*command[1:], cwd=tmp_path)
    folder = newest(tmp_path / "runs/quickstart", "track-davis-crw-256")
    for name in re.findall(r"^\| `([^/`]+)", DOC, re.MULTILINE):
        assert name in {"crw", "dino"} or (folder / name).exists(), name
    assert json.loads((tmp_path / "large/summary.json").read_text())["grid"] == [64, 64]


def test_the_numbers_of_the_presets_are_those_that_hold():
    rows = dict(re.findall(r"^\| (n frames|k|τ)\b[^|]*\| (.*) \|$", DOC, re.MULTILINE))
    said = {key: [float(cell) for cell in text.split("|")] for key, text in rows.items()}
    held = [asdict(PRESETS[name]) for name in ("crw", "dino")]
    assert said["n frames"] == [preset["frames"] for preset in held]
    assert said["k"] == [preset["top_k"] for preset in held]
    assert said["τ"] == [preset["temperature"] for preset in held]
