"""toto analyze token-loss, as a user types it."""

from __future__ import annotations

import csv
import json

import pytest
from command_line import newest, toto, write_recipe
from PIL import Image
from tiny_runs import tiny_recipe

PREFIX = {"name": "prefix", "frames": 1}


def trained(folder, recipe):
    toto("train", write_recipe(folder, recipe), cwd=folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_datasets):
    return trained(tmp_path_factory.mktemp("causal"), tiny_recipe(tiny_datasets))


def test_the_mean_of_all_positions_is_the_loss_of_the_evaluation(run, tiny_datasets):
    data = tiny_datasets / "videos-val"
    done = toto("analyze", "token-loss", "runs/tiny", data, "--sequences", 4, cwd=run)
    record = json.loads((newest(run / "runs/tiny", "token_loss") / "token_loss.json").read_text())
    lines = [json.loads(line) for line in (run / "runs/tiny/metrics.jsonl").open()]
    evaluated = [line for line in lines if line["kind"] == "eval"][-1]["sources"]["videos"]
    assert record["sequences"] == 4
    assert record["grid"] == [4, 4, 4]
    assert record["mean"] == pytest.approx(evaluated["loss"], rel=1e-5)
    assert record["by_frame"]["model"] == pytest.approx(evaluated["frame_loss"], rel=1e-5)
    rows = list(csv.DictReader((newest(run / "runs/tiny", "token_loss") / "token_loss.csv").open()))
    assert len(rows) == 4 * 4 * 4
    assert list(rows[-1].values())[:4] == ["63", "3", "3", "3"]
    total = sum(float(row["model"]) for row in rows)
    assert total / len(rows) == pytest.approx(record["mean"])
    assert Image.open(newest(run / "runs/tiny", "token_loss") / "token_loss.png").width > 1000
    assert "its first token" in done.stdout


def test_a_given_prefix_is_left_out(tmp_path, tiny_datasets):
    folder = trained(tmp_path, tiny_recipe(tiny_datasets, steps=2) | {"mask": PREFIX})
    data = tiny_datasets / "videos-val"
    toto("analyze", "token-loss", "runs/tiny", data, "--out", "out", cwd=folder)
    record = json.loads((folder / "out/token_loss.json").read_text())
    assert record["by_frame"]["model"][0] is None
    assert record["by_frame"]["copy"][0] > 0
    rows = list(csv.DictReader((folder / "out/token_loss.csv").open()))
    assert rows[0]["model"] == ""
    assert float(rows[16]["model"]) > 0


def test_regressed_patches_have_no_baselines(tmp_path, tiny_datasets):
    raw = tiny_recipe(tiny_datasets, batch_tokens=4 * 4 * 4, steps=2)
    folder = trained(tmp_path, raw | {"tokenizer": {"name": "patch", "patch_size": 16}})
    done = toto("analyze", "token-loss", "runs/tiny", tiny_datasets / "pictures", cwd=folder)
    record = json.loads(
        (newest(folder / "runs/tiny", "token_loss") / "token_loss.json").read_text()
    )
    assert record["unit"] == "squared error"
    assert list(record["by_frame"]) == ["model"]
    assert "unigram" not in done.stdout


def test_tokens_of_another_tokenizer_are_refused(run, tmp_path, tiny_datasets):
    other = tiny_recipe(tiny_datasets)
    other["tokenizer"]["weights"] = "random:1"
    recipe = write_recipe(tmp_path, other)
    tokens = tmp_path / "tokens"
    toto("tokenize", tiny_datasets / "videos-val", tokens, "--recipe", recipe, cwd=tmp_path)
    done = toto("analyze", "token-loss", "runs/tiny", tokens, cwd=run, code=2)
    assert "tokens of another tokenizer" in done.stderr
