"""Every command of docs/finetuning.md, run one after the other as a reader would."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from command_line import toto, write_recipe
from tiny_runs import tiny_recipe

DOC = (Path(__file__).parents[2] / "docs/finetuning.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", DOC, re.DOTALL)
    return [shlex.split(line[2:], comments=True) for block in blocks for line in block.splitlines()]


def test_every_command_runs(tmp_path, tiny_datasets):
    raw = tiny_recipe(tiny_datasets, steps=2, eval_every=2, save_every=2, eval_sequences=1)
    toto("train", write_recipe(tmp_path, raw), "--output", "runs/first", cwd=tmp_path)
    seen = []
    for words in commands():
        shorter = ["2" if word == "20" else word for word in words[1:]]
        toto(*shorter, cwd=tmp_path)
        seen.append(words[1])
    assert seen == [*["finetune"] * 5, "plan", "plan"]
    runs = {path.name for path in (tmp_path / "runs").iterdir()}
    assert runs == {"first", "first-finetune", "again", "first-classify", "causal"}
