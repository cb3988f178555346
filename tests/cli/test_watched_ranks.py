"""What a run of several ranks writes down is what a run of one does."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from command_line import ENVIRONMENT, toto, toto_process, write_recipe
from tiny_runs import tiny_recipe

from toto.jobs.history import read_history

pytestmark = pytest.mark.distributed


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train_lines(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def test_two_ranks_have_one_history_and_the_losses_of_each_source(tmp_path, tiny_datasets):
    raw = tiny_recipe(tiny_datasets, steps=3, eval_every=3, save_every=3)
    del raw["data"]["sources"]["videos"]["validation"]
    recipe = write_recipe(tmp_path, raw)
    toto("train", recipe, "--output", "runs/one", cwd=tmp_path)
    launcher = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}

    def start(rank):
        env = ENVIRONMENT | launcher | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        return toto_process("train", recipe, "--output", "runs/two", cwd=tmp_path, env=env)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(start, range(2)))
    one, two = (train_lines(tmp_path / "runs" / name) for name in ("one", "two"))
    assert [line["step"] for line in two] == [1, 2, 3]
    for alone, together in zip(one, two, strict=True):
        assert together["source_loss"] == pytest.approx(alone["source_loss"], rel=1e-5)
        assert together["memory"] > 2**20
        assert together["utilisation"] > 0
    start_of_two, end = read_history(tmp_path / "runs/two")
    assert (start_of_two.versions["ranks"], end.state, end.step) == (2, "done", 3)
    assert not (tmp_path / "runs/two/run.lock").exists()
