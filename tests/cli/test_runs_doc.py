"""Every command of docs/runs.md, one after the other as a reader would; its fields are written."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from command_line import toto, write_recipe
from tiny_runs import tiny_recipe

DOC = (Path(__file__).parents[2] / "docs/runs.md").read_text(encoding="utf-8")


def test_every_command_runs_and_every_field_is_written(tmp_path, tiny_datasets):
    raw = tiny_recipe(tiny_datasets, steps=2, eval_every=2, save_every=2, eval_sequences=1)
    write_recipe(tmp_path, raw, "my_recipe.yaml")
    blocks = re.findall(r"```console\n(.*?)```", DOC, re.DOTALL)
    commands = [line[2:] for block in blocks for line in block.splitlines()]
    for command in commands:
        toto(*shlex.split(command)[1:], cwd=tmp_path)
    assert [shlex.split(command)[1] for command in commands] == [
        "train", "runs", "runs", "train", "report", "report",
    ]  # fmt: skip
    page = (tmp_path / "runs/comparison.html").read_text()
    assert "optimizer.lr" in page
    assert "first, second" in page
    assert (tmp_path / "compared.html").read_text().count("<svg") == 2

    run = tmp_path / "runs/first"
    for name in re.findall(r"^\| `([^`]*)` \|", DOC.partition("A logged step")[0], re.MULTILINE):
        assert (run / name).exists() == (name != "run.lock"), name
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    table = DOC.partition("A logged step says")[2].partition("## ")[0]
    for cell in re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", cell):
            assert name in line, name


def test_the_same_run_twice_and_one_that_is_missing_are_refused(tmp_path, tiny_datasets):
    recipe = write_recipe(tmp_path, tiny_recipe(tiny_datasets, steps=2))
    toto("train", recipe, cwd=tmp_path)
    refused = toto("report", "runs/tiny", "runs/tiny", cwd=tmp_path, code=2)
    assert "runs/tiny: named twice" in refused.stderr
    refused = toto("report", "runs/tiny", "runs/other", cwd=tmp_path, code=2)
    assert "no run at runs/other. Runs that exist: runs/tiny" in refused.stderr
