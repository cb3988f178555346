"""A command that is refused leaves nothing behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from command_line import toto

if TYPE_CHECKING:
    from pathlib import Path

RANDOM = "tokenizer={name: dvae, weights: 'random:0', num_codes: 16, width: 8}"
LOST = "tokenizer={name: dvae, weights: lost.safetensors, num_codes: 16, width: 8}"
EAGER = ("--set", "training.compile=false", "--set", "data.make=null")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "quickstart", "--set", RANDOM, *EAGER), "data.root: no folder data/samples"),
        (("train", "quickstart", "--set", LOST, *EAGER, "--output", "a/b"), "no weights at"),
        (("tokenizer", "train", "tokenizer_dvae_tiny", *EAGER), "data.root: no folder"),
        (("pack", "nowhere", "a/out"), "nowhere"),
        (("tokenize", "nowhere", "a/out", "--recipe", "quickstart"), "nowhere"),
        (("features", "nowhere", "nowhere", "a/out"), "no run at nowhere"),
        (("report", "nowhere", "--out", "a/page.html"), "no run at nowhere"),
        (("export", "hf", "nowhere", "a/out"), "no run at nowhere"),
        (("analyze", "ngrams", "nowhere", "--out", "a/out"), "no dataset at nowhere"),
        (("view", "nowhere", "a/page.html"), "no dataset at nowhere"),
    ],
    ids=lambda value: "-".join(value[:3]) if isinstance(value, tuple) else None,
)
def test_a_refused_start_leaves_no_folder(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    refused = toto(*arguments, cwd=tmp_path, code=2)
    assert said in refused.stderr
    assert str(tmp_path) in refused.stderr or "no folder" not in said
    assert list(tmp_path.rglob("*")) == []


def test_weights_that_are_not_brought_leave_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOTO_HOME", str(tmp_path / "cache"))
    toto("weights", "get", "dvae", "--from", "nowhere", cwd=tmp_path, code=2)
    assert list(tmp_path.rglob("*")) == []
