"""doctor, view and stream, as a user types them."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile

import pytest
from command_line import toto, write_recipe
from tiny_runs import tiny_recipe

from toto.data.index import Dataset
from toto.jobs.realised import FailureLog
from toto.jobs.sources import named_stream
from toto.recipe.reader import read_recipe


@pytest.fixture
def data(tmp_path, tiny_datasets):
    shutil.copytree(tiny_datasets, tmp_path / "data")
    return tmp_path / "data"


def test_doctor_finds_lists_and_fixes(tmp_path, tiny_folders):
    shutil.copytree(tiny_folders / "pictures", tmp_path / "pictures")
    shutil.copy(tmp_path / "pictures/0.png", tmp_path / "pictures/copy.png")
    toto("pack", "pictures", "data", cwd=tmp_path)
    done = toto("doctor", "data", cwd=tmp_path, code=1)
    assert re.search(r"duplicate +1 ", done.stdout)
    (line,) = (tmp_path / "data/doctor.jsonl").read_text().splitlines()
    assert json.loads(line)["file"] in ("0.png", "copy.png")
    done = toto("doctor", "data", "--fix", cwd=tmp_path)
    assert "leave out 1 of its samples" in done.stdout
    assert Dataset.open(tmp_path / "data").excluded.tolist() == [json.loads(line)["sample"]]
    done = toto("doctor", "data", cwd=tmp_path)
    assert "findings: 0," in done.stdout
    assert "1 excluded before" in done.stdout


def test_doctor_on_a_dataset_that_cannot_be_written_says_so_before_it_decodes(
    tmp_path, data, monkeypatch
):
    def no_work(*arguments, **settings):
        raise AssertionError("decoding began")

    (tmp_path / "data/videos-val/doctor.jsonl").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr("toto.jobs.doctor.changed_shards", no_work)
        done = toto("doctor", "data/videos-val", cwd=tmp_path, code=2)
        assert "data/videos-val/doctor.jsonl cannot be written: Is a directory" in done.stderr
        assert "with --list FILE" in done.stderr
        (tmp_path / "data/videos-val/excluded.jsonl").mkdir()
        command = ("doctor", "data/videos-val", "--fix", "--list", "found.jsonl")
        assert "--fix writes into" in toto(*command, cwd=tmp_path, code=2).stderr
    command = ("doctor", "data/videos-val", "--frames", "2", "--list", "found.jsonl")
    toto(*command, cwd=tmp_path)
    assert (tmp_path / "found.jsonl").is_file()


def test_pack_prints_what_it_left_and_refuses_what_it_cannot_write_or_choose(
    tmp_path, tiny_folders, monkeypatch
):
    for split in ("train", "val"):
        for name in ("a", "b")[: 2 if split == "train" else 1]:
            (tmp_path / "src" / split / name).mkdir(parents=True)
            shutil.copy(tiny_folders / "pictures/0.png", tmp_path / "src" / split / name / "0.png")
    (tmp_path / "src/train/notes.txt").write_text("x")
    done = toto("pack", "src", "data", cwd=tmp_path, code=2)
    commands = [line.split() for line in done.stderr.split("\n") if line.startswith("  toto ")]
    assert [len(command) for command in commands] == [6, 8]
    first, second = (toto(*command[1:], cwd=tmp_path).stdout for command in commands)
    assert "1 shard, 2 classes (a, b)\n  left alone: 1 × .txt" in first
    assert "classes without a file here (1 of 2): b" in second
    packed = [Dataset.open(tmp_path / f"data-{split}").classes for split in ("train", "val")]
    assert packed == [("a", "b"), ("a", "b")]
    monkeypatch.setattr("toto.jobs.pack.plan_pack", None)  # would be the work
    done = toto("pack", "src/train", "src/train/notes.txt/out", cwd=tmp_path, code=2)
    assert "src/train/notes.txt/out cannot be written: Not a directory" in done.stderr


def test_doctor_does_not_offer_to_leave_out_what_is_only_unlabelled(tmp_path, tiny_folders):
    with tarfile.open(tmp_path / "pictures.tar", "w") as tar:
        for number, path in enumerate(sorted((tiny_folders / "pictures").iterdir())):
            tar.add(path, f"{number}.png")
            if number > 0:
                label = tarfile.TarInfo(f"{number}.cls")
                label.size = 1
                tar.addfile(label, io.BytesIO(b"0"))
    toto("pack", "pictures.tar", "data", cwd=tmp_path)
    done = toto("doctor", "data", cwd=tmp_path, code=1)
    assert "unlabelled samples stay" in done.stdout
    assert "--fix" not in done.stdout


def test_doctor_names_short_videos_and_does_not_exclude_all(tmp_path, data):
    videos = ("doctor", "data/videos-val")
    toto(*videos, "--frames", "4", "--stride", "2", cwd=tmp_path)
    done = toto(*videos, cwd=tmp_path, code=1)
    assert "12 frames, and a clip takes 61" in done.stdout
    done = toto(*videos, "--fix", cwd=tmp_path, code=2)
    assert "none would be left" in done.stderr
    assert not (data / "videos-val/excluded.jsonl").exists()


def test_doctor_knows_the_papers_sizes(tmp_path, data):
    done = toto("doctor", "data/pictures", "--like", "imagenet", cwd=tmp_path, code=1)
    assert "unlike the paper" in done.stdout
    done = toto("doctor", "data/pictures", "--like", "imagenette", cwd=tmp_path, code=2)
    assert "kinetics600" in done.stderr


def test_view_shows_raw_samples_and_what_tokens_hold(tmp_path, data):
    clip = ("--frames", "4", "--stride", "2", "--resolution", "32")
    toto("view", "data/videos-train", "raw.html", *clip, "--samples", "3", cwd=tmp_path)
    page = (tmp_path / "raw.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert page.count("<h3>") == 3
    assert "frames 2 apart" in page
    assert "<script" not in page
    assert "http" not in page
    recipe = write_recipe(tmp_path, tiny_recipe(data))
    toto("tokenize", "data/pictures", "codes", "--recipe", recipe, cwd=tmp_path)
    toto("view", "codes", "codes.html", *clip[:4], "--samples", "5", cwd=tmp_path)
    page = (tmp_path / "codes.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert page.count("<figcaption") == 5
    assert "by their own tokenizer." in page, "pictures have no stride"


def test_stream_prints_the_same_units_at_any_world_size(tmp_path, data):
    recipe = write_recipe(tmp_path, tiny_recipe(data))

    def lines(world):
        printed = toto(
            "stream", recipe, "--from", "12000", "--steps", "3", "--world", world, cwd=tmp_path
        ).stdout.splitlines()
        assert printed[0].split("\t")[:3] == ["step", "rank", "position"]
        return [line.split("\t") for line in printed[1:]]

    one, three = lines(1), lines(3)
    assert [row[:1] + row[2:] for row in one] == [row[:1] + row[2:] for row in three]
    assert {row[1] for row in three} == {"0", "1", "2"}
    stream = named_stream(read_recipe(str(recipe), []))
    first = int(one[0][2])
    assert first == 12000 * 4
    sample = one[0][4]
    drawn = next(stream.units([first]))
    assert (str(drawn.sample), str(drawn.start)) == (sample, one[0][6])
    toto("stream", recipe, "--world", "5", cwd=tmp_path, code=2)


def test_stream_ends_when_nothing_reads_it(tmp_path, data):
    recipe = write_recipe(tmp_path, tiny_recipe(data))
    command = [sys.executable, "-m", "toto.cli", "stream", recipe, "--steps", str(10**9)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith(b"step\trank")
        process.stdout.close()
        assert process.wait(timeout=60) == 0


def test_what_was_drawn_is_said_and_reported(tmp_path, data):
    done = toto("train", write_recipe(tmp_path, tiny_recipe(data, steps=4)), cwd=tmp_path)
    assert "videos: 768 tokens in 12 sequences (75.0%)" in done.stdout
    assert "pictures: 256 tokens in 4 sequences (25.0%)" in done.stdout
    toto("report", cwd=tmp_path)
    assert "tokens seen" in (tmp_path / "runs/tiny/report.html").read_text()
    assert not FailureLog.read(tmp_path / "runs/tiny")
