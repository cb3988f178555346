"""`toto plan` as a user runs it, and every command of docs/plan.md."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, toto, write_recipe
from tiny_runs import tiny_recipe

from toto.analysis.devices import DEVICES

DOC = (Path(__file__).parents[2] / "docs/plan.md").read_text(encoding="utf-8")


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


@pytest.mark.parametrize(("words", "remark"), commands(), ids=lambda part: " ".join(part))
def test_every_command_of_the_page_runs(words, remark, tmp_path):
    assert words[:2] == ["toto", "plan"]
    done = toto(*words[1:], cwd=tmp_path, code=2 if remark.startswith("refused") else 0)
    assert ("disk: " in done.stdout) != remark.startswith("refused")


def test_a_plan_of_the_papers_base_model(tmp_path):
    done = toto("plan", "pretrain_base", "--gpus", "8x8", "--device", "h200", cwd=tmp_path)
    for line in (
        "pretrain_base on 8 × 8 NVIDIA H200 SXM 141 GB, bf16, compiled",
        "parameters: 119,559,936: backbone 113,265,408, embedding 6,294,528, readout 0",
        "256 sequences = 1,048,576 tokens",
        "ranks: 64; of a step each takes 4 sequences at most, micro-batches: 1 of 4",
        "as the paper counts the run: 4.9e+17 in Table 4",
        "at 40% of 989.4 TFLOP/s",
        "the recipe has ZeRO 1; for another line `toto train` takes --set training.deepspeed.zero",
        "terms of ZeRO 1, at the backward pass of the loss",
        "  P parameters, R GPUs, n blocks,",
        "disk: 4.01 GiB, 2 checkpoints kept and one being written",
    ):
        assert line in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("  ZeRO")]
    assert len(rows) == 8
    assert all(" yes " in row for row in rows)


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        ([], "one process"),
        (["--set", "training.recompute=true"], "one process, recompute"),
        (["--set", "training.engine=deepspeed"], "ZeRO 1"),
        (["--gpus", "2", "--set", "training.deepspeed.zero_stage=3"], "ZeRO 3"),
    ],
)
def test_the_setting_of_the_recipe_is_named_and_laid_open(arguments, setting, tmp_path):
    done = toto("plan", "quickstart", *arguments, cwd=tmp_path)
    assert f"the recipe has {setting}; " in done.stdout
    assert f"terms of {setting}, at the " in done.stdout


def test_ranks_without_sequences_are_told(tmp_path):
    done = toto("plan", "quickstart", "--gpus", "6", cwd=tmp_path)
    assert "ranks with nothing to do: 2; a step has 4 sequences" in done.stdout
    assert "nothing to do" not in toto("plan", "quickstart", "--gpus", "4", cwd=tmp_path).stdout


def test_what_does_not_fit_is_said_with_a_mend(tmp_path):
    done = toto("plan", "pretrain_1b", "--device", "l4", cwd=tmp_path)
    assert "nothing fits: lower training.micro_batch, or take more GPUs" in done.stdout


def test_sources_that_are_here_have_epochs_and_token_shards(tmp_path, tiny_datasets):
    recipe = write_recipe(tmp_path, tiny_recipe(tiny_datasets))
    done = toto("plan", recipe, "--device", "cpu", cwd=tmp_path)
    epochs = {
        name: re.search(rf"^  {name} +\S+ +\S+ +\S+ +(\S+)$", done.stdout, re.MULTILINE)
        for name in ("videos", "pictures")
    }
    assert all(found is not None and float(found[1]) > 0 for found in epochs.values())
    assert "token shards of videos: " in done.stdout
    moved = toto("plan", recipe, "--set", "data.root=elsewhere", cwd=tmp_path)
    assert moved.stdout.count("not here") == 2


def test_a_backbone_that_nobody_counted_is_planned_without_memory(tmp_path, tiny_datasets):
    plugin = Path(__file__).parents[1] / "plugins/parts.py"
    shutil.copy(plugin, tmp_path)  # under its own path another test may have imported it already
    recipe = tiny_recipe(tiny_datasets) | {
        "imports": ["parts.py"],
        "backbone": {"name": "running_mean", "width": 8, "num_layers": 2},
    }
    done = toto("plan", write_recipe(tmp_path, recipe), "--device", "h100", cwd=tmp_path)
    assert "unknown: the backbone's Config has no block_memory" in done.stdout
    assert "nothing fits" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain_base", "--device", "h20O"], "--device h20O: unknown. There are h100, h200"),
        (["pretrain_base", "--gpus", "8x0"], "--gpus 8x0: write the GPUs of one node"),
        (["tokenizer_dvae_tiny"], "trains a tokenizer, and plans are of models"),
        (["pretrain_base", "--set", "training.stepz=1"], "Did you mean steps?"),
    ],
)
def test_mistakes_are_the_users(arguments, message, tmp_path):
    assert message in toto("plan", *arguments, cwd=tmp_path, code=2).stderr


@pytest.mark.parametrize("value", ["0", "1.5", "-1", "half"])
def test_utilisation_is_a_share(value, tmp_path):
    done = toto("plan", "pretrain_base", "--utilisation", value, cwd=tmp_path, code=2)
    assert "--utilisation" in done.stderr


def test_help_names_every_device(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = toto("plan", "--help", cwd=tmp_path).stdout
    assert all(name in text for name in DEVICES)


def test_a_plan_imports_no_torch(tmp_path):
    program = (
        "import sys\nfrom toto.jobs.plan import print_plan\n"
        "print_plan('quickstart', [], gpus='2x4', device='h100', utilisation=0.4)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=ENVIRONMENT, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
