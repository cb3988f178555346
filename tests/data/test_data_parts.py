"""Kills: what is finished is gone on with, and does not show in the bytes."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_data import png, random_picture

from toto.data.index import Dataset
from toto.data.manifest import SkippedFile
from toto.data.parts import Description, Parts, Sample
from toto.data.progress import unsaid
from toto.errors import DataError, RunError
from toto.files import locked

DESCRIPTION = Description("images", "raw")


def sample(number):
    return Sample(f"{number:06d}", "png", png(random_picture(number, 8, 8)), f"{number}.png")


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def write_all(out, numbers):
    parts = Parts.open(out, "plan", 5, unsaid)
    for number in numbers:
        parts.write(number, [sample(number * 2), sample(number * 2 + 1)])
    return parts


@settings(max_examples=12, deadline=None)
@given(order=st.permutations(range(5)), stop=st.integers(0, 5))
def test_the_order_of_the_parts_and_a_stop_do_not_show(tmp_path_factory, order, stop):
    root = tmp_path_factory.mktemp("parts")
    assert write_all(root / "plain", range(5)).publish(DESCRIPTION)
    assert write_all(root / "other", order[:stop]).publish(DESCRIPTION) is (stop == 5)
    if stop < 5:
        assert write_all(root / "other", order[stop:]).publish(DESCRIPTION)
    assert contents(root / "plain") == contents(root / "other")
    assert sorted(path.name for path in root.iterdir()) == ["other", "plain"]
    dataset = Dataset.open(root / "other")
    assert [dataset.key(i) for i in range(10)] == [f"{i:06d}" for i in range(10)]
    assert list(dataset.origins()) == [f"{i}.png" for i in range(10)]


def test_a_part_that_fails_is_not_there(tmp_path):
    parts = Parts.open(tmp_path / "d", "plan", 2, unsaid)

    def items():
        yield sample(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts.write(0, items())
    assert parts.missing() == [0, 1]
    assert not any((tmp_path / ".d.partial/work").iterdir())


def test_a_part_is_finished_though_another_process_publishes_at_once(tmp_path, monkeypatch):
    parts = write_all(tmp_path / "d", range(4))
    folder, replace = tmp_path / ".d.partial", Path.replace

    def replace_and_publish(path, target):
        replace(path, target)
        if target == folder / "parts/00004.json":
            assert parts.publish(DESCRIPTION)
            assert not folder.exists()

    monkeypatch.setattr(Path, "replace", replace_and_publish)
    assert parts.write(4, [sample(8), sample(9)]).shard.samples == 2
    assert parts.publish(DESCRIPTION)
    assert Dataset.open(tmp_path / "d").num_samples == 10


def test_another_plan_is_discarded_and_said(tmp_path):
    write_all(tmp_path / "d", [0, 1])
    notes = []
    assert Parts.open(tmp_path / "d", "plan", 5, notes.append).missing() == [2, 3, 4]
    assert "2 of 5 shards are finished; going on" in notes.pop()
    assert Parts.open(tmp_path / "d", "other", 5, notes.append).missing() == [0, 1, 2, 3, 4]
    assert "is of other files or options" in notes.pop()


def test_a_part_without_samples_has_no_shard(tmp_path):
    parts = Parts.open(tmp_path / "d", "plan", 2, unsaid)
    parts.write(0, [SkippedFile(path="a", reason="b")])
    parts.write(1, [sample(1)])
    parts.publish(DESCRIPTION)
    manifest = Dataset.open(tmp_path / "d").manifest
    assert [shard.name for shard in manifest.shards] == ["shard-00001.tar"]
    assert [file.path for file in manifest.skipped] == ["a"]
    assert not (tmp_path / "d/shard-00000.tar").exists()


def test_what_is_left_after_publishing_is_cleaned(tmp_path):
    write_all(tmp_path / "d", range(5)).publish(DESCRIPTION)
    (tmp_path / ".d.partial/parts").mkdir(parents=True)  # as if killed before it was removed
    with pytest.raises(DataError, match="exists already"):
        Parts.open(tmp_path / "d", "plan", 5, unsaid)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_kill_while_publishing_is_gone_on_with(tmp_path, monkeypatch):
    write_all(tmp_path / "plain", range(5)).publish(DESCRIPTION)
    parts = write_all(tmp_path / "d", range(5))

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("toto.data.parts.write_atomic", full)
        with pytest.raises(RunError, match="No space left"):
            parts.publish(DESCRIPTION)
    assert not (tmp_path / "d").exists()
    assert Parts.open(tmp_path / "d", "plan", 5, unsaid).publish(DESCRIPTION)
    assert contents(tmp_path / "d") == contents(tmp_path / "plain")


def test_many_publish_at_once_and_all_see_it_whole(tmp_path):
    parts = write_all(tmp_path / "d", range(5))
    seen = []
    threads = [
        threading.Thread(target=lambda: seen.append(parts.publish(DESCRIPTION))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 8
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_lock_keeps_others_out_and_leaves_no_file(tmp_path):
    inside = []

    def hold():
        for _ in range(20):
            with locked(tmp_path / "lock"):
                inside.append(1)
                assert len(inside) == 1
                inside.pop()

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == []
    assert not (tmp_path / "lock").exists()


PACK = """
import sys, time
from pathlib import Path
from toto.data.layouts import list_source
from toto.data.pack import pack
from toto.data.plan import FilePlan
if __name__ == "__main__":
    plan = FilePlan(list_source("folder", Path(sys.argv[1])), max_shard_samples=7)
    slow = lambda done, total: time.sleep(0.002)
    pack(plan, Path(sys.argv[2]), workers=int(sys.argv[3]), progress=slow, note=print)
"""


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def test_a_pack_killed_again_and_again_has_the_same_bytes(tmp_path):
    source = tmp_path / "src"
    for number in range(120):
        path = source / f"class{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(random_picture(number, 20, 20)))
    script = tmp_path / "script.py"
    script.write_text(PACK)
    assert start(script, source, tmp_path / "plain", 0).wait() == 0
    rng, finished = random.Random(0), 0
    for attempt in range(40):
        process = start(script, source, tmp_path / "killed", attempt % 3)
        parts = tmp_path / ".killed.partial" / "parts"
        # Killed once it has come a little further than the one before.
        goal = finished + rng.randrange(1, 5)
        while process.poll() is None and len(list(parts.glob("*.json"))) <= goal:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        finished = len(list(parts.glob("*.json")))
        assert not (tmp_path / "killed").exists() or finished == 0
        if (tmp_path / "killed").exists():
            break
    assert attempt >= 3
    assert contents(tmp_path / "killed") == contents(tmp_path / "plain")
    assert os.listdir(tmp_path / "killed")
