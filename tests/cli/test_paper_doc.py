"""The commands of docs/paper.md."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from command_line import toto

DOC = (Path(__file__).parents[2] / "docs/paper.md").read_text(encoding="utf-8")


def test_every_command_runs(tmp_path):
    blocks = re.findall(r"```console\n(.*?)```", DOC, re.DOTALL)
    commands = [shlex.split(line[2:]) for block in blocks for line in block.splitlines()]
    assert len(commands) == 5
    for words in commands:
        extra = ["--show"] if words[1] == "ablate" else []
        toto(*words[1:], *extra, cwd=tmp_path)
    assert (tmp_path / "runs/paper.html").is_file()
