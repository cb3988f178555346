"""Runs whose datasets are somewhere else."""

from __future__ import annotations

import pytest
from command_line import toto, write_recipe
from flaky_server import serving
from tiny_runs import tiny_recipe

from toto.data.index import Dataset


@pytest.fixture
def server(tiny_datasets):
    with serving(tiny_datasets) as server:
        yield server


def test_a_run_over_http_trains_resumes_and_reports(tmp_path, tiny_datasets, server):
    raw = tiny_recipe(tiny_datasets, steps=3)
    raw["data"] |= {"root": server.address, "cache": {"folder": str(tmp_path / "cache")}}
    recipe = write_recipe(tmp_path, raw)
    server.faults = {"shard-00000.tar": ["truncate"]}
    toto("train", recipe, "--output", "run", "--set", "data.workers=2", cwd=tmp_path)
    (tmp_path / "run/history.jsonl").unlink()  # else the run is finished
    elsewhere = ["--set", f"data.cache.folder={tmp_path / 'another'}"]
    toto("train", recipe, "--output", "run", "--resume", *elsewhere, cwd=tmp_path)
    toto("report", "run", cwd=tmp_path)
    assert server.address in (tmp_path / "run" / "report.html").read_text()


def test_a_remote_dataset_is_tokenized_into_a_folder(tmp_path, tiny_datasets, server, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # the cache's default folder is below it
    recipe = write_recipe(tmp_path, tiny_recipe(tiny_datasets, steps=3))
    toto("tokenize", f"{server.address}/videos-val", "out", "--recipe", recipe, cwd=tmp_path)
    local = Dataset.open(tiny_datasets / "videos-val")
    assert Dataset.open(tmp_path / "out").num_samples == local.num_samples


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": "once"}, "data.tokens: once writes datasets under data.root"),
        ({"make": "samples"}, "data.make writes datasets under data.root"),
    ],
)
def test_nothing_is_written_at_an_address(tmp_path, tiny_datasets, server, changes, message):
    raw = tiny_recipe(tiny_datasets, steps=3)
    raw["data"] |= {"root": server.address, "cache": {"folder": str(tmp_path / "cache")}}
    raw["data"] |= changes
    done = toto("train", write_recipe(tmp_path, raw), cwd=tmp_path, code=2)
    assert message in " ".join(done.stderr.split())


def test_a_held_out_part_is_not_trained_on(tmp_path, tiny_datasets):
    raw = tiny_recipe(tiny_datasets, steps=3)
    raw["data"]["sources"]["videos"] = {
        "path": ["videos-train", "videos-val"],
        "validation": ["videos-val"],
    }
    done = toto("train", write_recipe(tmp_path, raw), cwd=tmp_path, code=2)
    assert "videos-val is also trained on, by source videos" in " ".join(done.stderr.split())
