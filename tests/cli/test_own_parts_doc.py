"""The backbone and the head of docs/own_parts.md, and every command, as a reader runs them."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from command_line import toto, write_recipe
from tiny_runs import tiny_recipe

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs/own_parts.md").read_text(encoding="utf-8")
GRU, MAX_POOLING = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
(RECIPE,) = re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL)
COMMANDS = [line[2:] for line in DOC.splitlines() if line.startswith("$ ")]
SMALL = {
    "train": [
        "training.steps=2", "schedule.warmup_steps=1", "training.compile=false",
        "training.micro_batch=2", "training.eval_sequences=2", "training.batch_tokens=256",
        "clip.frames=2", "backbone.width=32",
    ],
    "probe": ["epochs=1"],
}  # fmt: skip
CHECK = ("check", "backbone", "{name: gru, width: 16, num_layers: 2}", "--import", "gru.py")


@pytest.fixture
def folder(tmp_path, tiny_datasets) -> Path:
    """Return the working directory of a reader, with the samples and the files of the page."""
    for split in ("train", "val"):
        for name in ("digits", "clips"):
            source = tiny_datasets / f"videos-{split}"
            shutil.copytree(source, tmp_path / f"data/samples/{name}-{split}")
    (tmp_path / "gru.py").write_text(GRU)
    (tmp_path / "max_pooling.py").write_text(MAX_POOLING)
    (tmp_path / "gru.yaml").write_text(RECIPE)
    return tmp_path


def test_every_command_works(folder):
    printed = ""
    for line in COMMANDS:
        command = shlex.split(line)
        assert command[0] == "toto"
        small = [part for value in SMALL.get(command[1], []) for part in ("--set", value)]
        printed += toto(*command[1:], *small, cwd=folder).stdout
    assert list((folder / "runs/gru/eval").glob("generate-*/sample-0.png"))
    for line in re.findall(r"^  (?:holds|optional): .*", DOC, re.MULTILINE):
        assert line in printed


def gru_recipe(folder: Path, data: Path, **training) -> Path:
    backbone = {"name": "gru", "width": 16, "num_layers": 2}
    recipe = tiny_recipe(data, steps=2, **training) | {"backbone": backbone}
    return write_recipe(folder, recipe | {"imports": ["gru.py"]})


def test_the_backbone_trains_in_bf16(folder, tiny_datasets):
    recipe = gru_recipe(folder, tiny_datasets, precision="bf16")
    toto("train", recipe, "--output", "run", cwd=folder)


MISTAKES = {
    "an unknown role": (
        '"hidden" if p.ndim == 2', '"matrix" if p.ndim == 2',
        "param_roles() gives units.0.weight_ih_l0 the role 'matrix', and no group of the "
        "optimizer would train it. Roles are embed, hidden,",
    ),
    "no role": (
        "for name, p in self.named_parameters()", "for name, p in self.units.named_parameters()",
        "param_roles() has no role for last_norm.bias, last_norm.weight, norms.0.bias,",
    ),
    "no layer": (
        "            for name, _ in self.named_parameters()",
        "            for name, _ in self.named_parameters() if 'norm' not in name",
        "param_layers() has no layer for last_norm.bias",
    ),
    "a missing method": (
        GRU[GRU.index("    def param_roles") : GRU.index("    def param_layers")], "",
        "error: Gru does not define param_roles. Its base class Backbone says what each returns",
    ),
    "half of the multiply-accumulates": (
        "length * 6 * self.width**2", "length * 3 * self.width**2",
        "forward_macs() less elementwise_macs() is 36,864 for 24 positions and 73,728 for 48, and "
        "torch's FLOP counter finds 73,728 and 147,456",
    ),
    "a detached block": (
        "x_BLD + update_BLD", "x_BLD + update_BLD.detach()",
        "no gradient reaches norms.0.weight",
    ),
    "nothing is built": (
        "        return Gru(self)", "        Gru(self)",
        "build() returned None instead of a Backbone",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("right", "wrong", "message"), MISTAKES.values(), ids=MISTAKES)
def test_check_names_the_mistake(folder, right, wrong, message):
    assert right in GRU
    (folder / "gru.py").write_text(GRU.replace(right, wrong))
    done = toto(*CHECK, cwd=folder, code=2)
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_training_with_an_unknown_role_is_refused(folder, tiny_datasets):
    (folder / "gru.py").write_text(GRU.replace('"hidden" if', '"matrix" if'))
    recipe = gru_recipe(folder, tiny_datasets)
    done = toto("train", recipe, "--output", "run", cwd=folder, code=2)
    assert "the unknown role 'matrix'; roles are embed," in " ".join(done.stderr.split())
