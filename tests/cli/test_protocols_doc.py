"""Every command of docs/protocols.md, as a reader would; every protocol stands there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

from command_line import newest, toto, write_recipe
from tiny_runs import tiny_recipe

from toto.recipe.reader import list_recipes

DOC = (Path(__file__).parents[2] / "docs/protocols.md").read_text(encoding="utf-8")


def test_every_command_runs(tmp_path, tiny_datasets, monkeypatch):
    raw = tiny_recipe(tiny_datasets, steps=2)
    toto("train", write_recipe(tmp_path, raw, "quickstart.yaml"), cwd=tmp_path)
    shutil.copytree(tiny_datasets / "videos-val", tmp_path / "data/digits-val")
    for part in ("train", "val"):
        shutil.copytree(tiny_datasets / f"videos-{part}", tmp_path / f"data/letters-{part}")
    (recipe,) = re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL)
    (tmp_path / "letters.yaml").write_text(recipe)
    blocks = re.findall(r"```console\n(.*?)```", DOC, re.DOTALL)
    commands = [line[2:] for block in blocks for line in block.splitlines()]
    for command in commands:
        words = shlex.split(command, comments=True)[1:]
        toto(*words, *(["--set", "epochs=1"] if words[0] == "probe" else []), cwd=tmp_path)
    verbs = ["probe", "probe", "show", "features", "probe"]
    assert [command.split()[1] for command in commands] == verbs
    assert (newest(tmp_path / "runs/quickstart", "letters-letters") / "curve.png").is_file()
    for name in ("results.jsonl", "summary.json", "curve.png"):
        assert (newest(tmp_path / "runs/quickstart", "probe-videos") / name).is_file()
        assert f"`{name}`" in DOC
    (program,) = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(program, names)
    assert getattr(names["last_THWD"], "shape", None) == (4, 4, 4, 64)


def test_every_protocol_is_described():
    headings = "".join(line for line in DOC.splitlines() if line.startswith("## "))
    for name in (entry.path.stem for entry in list_recipes() if entry.verb == "probe"):
        short = name.removeprefix("probe_imagenet_linear").removeprefix("probe_imagenet_attention")
        assert f"`{name}`" in headings or f"`{short}`" in headings, name
