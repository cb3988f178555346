"""`toto track` on tiny runs and a toy DAVIS."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from command_line import newest, toto, write_recipe
from PIL import Image
from tiny_runs import tiny_recipe
from toy_davis import FRAMES, HEIGHT, WIDTH, make_davis

from toto.data.davis import ANNOTATIONS, read_mask, write_mask
from toto.errors import RunError
from toto.folders import results_in
from toto.jobs import track as job

HERE = ("--davis", "davis", "--resolution", "64")
QUICK = {"steps": 2, "eval_every": 2, "eval_sequences": 1, "save_every": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_datasets) -> Path:
    """A folder with `run` (codes, LLaMA), `patches` (patches, GPT-2) and `davis`."""
    home = tmp_path_factory.mktemp("track")
    make_davis(home / "davis")
    raw = tiny_recipe(tiny_datasets, **QUICK)
    toto("train", write_recipe(home, raw), "--output", "run", cwd=home)
    raw["tokenizer"] = {"name": "patch", "patch_size": 8}
    raw["backbone"] = {"name": "gpt2", "preset": "tiny"}
    toto("train", write_recipe(home, raw, "patches.yaml"), "--output", "patches", cwd=home)
    return home


@pytest.fixture(scope="module")
def tracked(home) -> str:
    return toto("track", "run", *HERE, cwd=home).stdout


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_every_layer_is_scored_beside_the_copied_mask(home, tracked):
    rows = rows_of(newest(home / "run", "track"))
    found = [(row["layer"], row["sequence"], row["object"]) for row in rows]
    objects = [("one", 1), ("two", 1), ("two", 2)]
    assert found == [(layer, *one) for layer in (0, 1, "copy first mask") for one in objects]
    table = tracked[tracked.index("layer  ") :].splitlines()
    assert table[0].split()[1:4] == ["J&F", "J", "mean"]
    assert [line[:1] for line in table[1:4]] == ["0", "1", "c"]
    copied = np.mean([row["j_mean"] for row in rows if row["layer"] == "copy first mask"])
    assert f"{copied:.3f}" in table[3]
    assert re.search(r"best at layer [01]: J&F .* copy first mask: .*%", tracked)


def test_the_summary_says_what_the_masks_were_made_with(home, tracked):
    summary = json.loads((newest(home / "run", "track") / "summary.json").read_text())
    assert (summary["resolution"], summary["grid"], summary["start"]) == (64, [8, 8], "image")
    assert summary["preset"]["name"] == "crw"
    assert (summary["preset"]["frames"], summary["preset"]["top_k"]) == (20, 10)
    by_layer = {row["layer"]: row["J&F"] for row in summary["layers"]}
    assert by_layer[summary["best_layer"]] == max(by_layer[0], by_layer[1])


def test_masks_and_overlays_of_the_best_layer_stay(home, tracked):
    folder = newest(home / "run", "track")
    assert results_in(folder) == [
        "curve.png", "masks", "overlays", "results.jsonl", "summary.json",
    ]  # fmt: skip
    masks = sorted((folder / "masks/two").iterdir())
    assert [path.name for path in masks] == [f"{t:05d}.png" for t in range(FRAMES)]
    first_HW, truth_HW = (
        read_mask(masks[0]),
        read_mask(home / "davis" / ANNOTATIONS / "two/00000.png"),
    )
    assert np.array_equal(first_HW, np.where(truth_HW == 255, 0, truth_HW))
    with Image.open(masks[-1]) as image:
        assert (image.mode, image.size) == ("P", (WIDTH, HEIGHT))
    with av.open(str(folder / "overlays/two.mp4")) as film:
        assert len(list(film.decode(video=0))) == FRAMES


def test_its_masks_score_the_same_by_themselves(home, tracked):
    folder = newest(home / "run", "track")
    best = json.loads((folder / "summary.json").read_text())["best_layer"]
    out = toto("track", "--score", folder / "masks", "--davis", "davis", cwd=home).stdout
    for row in rows_of(folder):
        if row["layer"] == best:
            line = rf"{row['sequence']} +{row['object']} +{row['j_mean']!r} +{row['f_mean']!r}"
            assert re.search(line, out), f"{line}\n{out}"
    layers = json.loads((folder / "summary.json").read_text())["layers"]
    total = next(row["J&F"] for row in layers if row["layer"] == best)
    assert re.search(rf"J&F +{total!r}", out)


def test_annotations_score_one_and_copies_as_the_baseline(home, tmp_path, tracked):
    out = toto("track", "--score", home / "davis" / ANNOTATIONS, *HERE[:2],
               "--sequences", "one", cwd=home, code=2).stderr  # fmt: skip
    assert "holds the id 255, and one has objects 1 to 1" in out, "as the official code has it"
    for name in ("one", "two"):
        first = read_mask(newest(home / "run", "track") / "masks" / name / "00000.png")
        for t in range(FRAMES):
            path = tmp_path / "copied" / name / f"{t:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(first).save(path)
    out = toto("track", "--score", tmp_path / "copied", *HERE[:2], cwd=home).stdout
    copied = [
        row for row in rows_of(newest(home / "run", "track")) if row["layer"] == "copy first mask"
    ]
    assert all(repr(row["f_mean"]) in out for row in copied)


def content(folder: Path) -> dict[Path, bytes]:
    """Of every file but films, whose bytes may change with the encoder's threads."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".mp4"]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_twice_gives_the_same_bytes(home, tracked):
    toto("track", "run", *HERE, "--out", "again", cwd=home)
    assert content(home / "again") == content(newest(home / "run", "track"))


def test_a_killed_one_goes_on_to_the_same_bytes(home, tracked, monkeypatch):
    """The disk is full in the second sequence: the old folder stays, the first is not redone."""
    command = ("track", "run", *HERE, "--out", "killed")
    (home / "killed/masks").mkdir(parents=True)
    written = []

    def fills(path, ids_HW, write=job.write_mask):
        if path.parent.name == "two" and path.stem == "00002":
            raise OSError(28, "No space left on device")
        written.append(path.parent.name)
        write(path, ids_HW)

    monkeypatch.setattr(job, "write_mask", fills)
    assert "killed cannot be written" in toto(*command, cwd=home, code=1).stderr
    assert results_in(home / "killed") == ["masks"]
    monkeypatch.undo()
    written.clear()

    def counts(path, ids_HW, write=job.write_mask):
        written.append(path.parent.name)
        write(path, ids_HW)

    monkeypatch.setattr(job, "write_mask", counts)
    assert "going on: 1 of 2 sequences are done" in toto(*command, cwd=home).stdout
    assert set(written) == {"two"}
    assert content(home / "killed") == content(newest(home / "run", "track"))
    assert not (home / "killed/.unfinished").exists()


def test_what_was_made_with_other_settings_is_not_gone_on_with(home, tracked, monkeypatch):
    def full(path, ids_HW, write=job.write_mask):
        if path.parent.name == "two":
            raise OSError(28, "No space left on device")
        write(path, ids_HW)

    monkeypatch.setattr(job, "write_mask", full)
    toto("track", "run", *HERE, "--out", "other", "--preset", "dino", cwd=home, code=1)
    monkeypatch.undo()
    assert "going on" not in toto("track", "run", *HERE, "--out", "other", cwd=home).stdout
    assert content(home / "other") == content(newest(home / "run", "track"))


def test_patches_another_resolution_preset_and_layers(home):
    out = toto(
        "track", "patches", "--davis", "davis", "--resolution", "32", "--preset", "dino",
        "--start", "video", "--layers", "-1,0", "--sequences", "two", "--out", "small", cwd=home,
    ).stdout  # fmt: skip
    assert "4 × 4 tokens a frame" in out
    summary = json.loads((home / "small/summary.json").read_text())
    assert [row["layer"] for row in summary["layers"]] == [0, 2, "copy first mask"]
    assert (summary["preset"]["name"], summary["start"]) == ("dino", "video")


def test_another_rope_base_changes_the_features(home, tracked):
    toto("track", "run", *HERE, "--rope-base", "100", "--layers", "1", "--out", "base", cwd=home)
    assert json.loads((home / "base/summary.json").read_text())["rope_base"] == 100.0
    assert (home / "base/results.jsonl").read_text() not in (
        newest(home / "run", "track") / "results.jsonl"
    ).read_text()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "toto track takes a RUN, whose features it tracks with, or --score MASKS"),
        (("run", "--score", "masks"), "or --score MASKS: one of the two"),
        (("--score", "davis", "--preset", "dino"), "--preset is about tracking, and --score"),
        (("--score", "none"), "no folder none. Give the one that holds a folder of masks"),
        (("--score", "davis"), "davis/one/00001.png is missing. Masks are named as the frames are"),
        (("run", "--resolution", "60"), "--resolution 60: "),
        (("run", "--layers", "7"), "--layers 7: layer 7 does not exist: there are 0..1"),
        (("run", "--layers", "x"), "--layers x: write all, or numbers such as 0,3,6"),
        (("run", "--sequences", "three"), "sequence three: no frames in"),
        (("patches", "--rope-base", "50000"), "--rope-base: backbone gpt2 has no RoPE"),
        (("run", "--out", "davis"), "which toto track did not write. Name another"),
    ],
)
def test_mistakes_are_refused(home, arguments, text):
    assert text in toto("track", "--davis", "davis", *arguments, cwd=home, code=2).stderr


def test_a_video_of_two_frames_is_refused_before_any_work(home, tmp_path):
    shutil.copytree(home / "davis", tmp_path / "davis")
    for path in (tmp_path / "davis").rglob("two/*"):
        if path.stem > "00001":
            path.unlink()
    arguments = ("run", "--davis", tmp_path / "davis", "--resolution", "64")
    error = toto("track", *arguments, cwd=home, code=2).stderr
    assert "two has 2 frames; the first and the last are not scored" in error


def test_annotations_of_another_size_are_found_first_and_a_rerun_works_after_repair(home, tmp_path):
    shutil.copytree(home / "davis", tmp_path / "davis")
    path = tmp_path / "davis" / ANNOTATIONS / "two/00002.png"
    whole = path.read_bytes()
    with Image.open(path) as image:
        image.resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.NEAREST).save(path)
    command = ("track", "run", "--davis", tmp_path / "davis", *HERE[2:], "--out", tmp_path / "out")
    done = toto(*command, cwd=home, code=2)
    assert f"two/00002.png is {WIDTH // 2} × {HEIGHT // 2}, and its frame" in done.stderr
    assert "tracking with" not in done.stdout
    path.write_bytes(whole)
    toto(*command, cwd=home)
    assert (tmp_path / "out/summary.json").is_file()


def test_a_file_that_was_repaired_is_tracked_again(home, tmp_path, monkeypatch):
    shutil.copytree(home / "davis", tmp_path / "davis")
    command = ("track", "run", "--davis", tmp_path / "davis", *HERE[2:], "--out", tmp_path / "out")

    def fails(*arguments):
        raise RunError("no room for films")

    with monkeypatch.context() as patched:
        patched.setattr(job, "_write_overlays", fails)
        toto(*command, cwd=home, code=1)
    done = toto(*command, cwd=home)
    assert "2 of 2 sequences are done" in done.stdout
    with monkeypatch.context() as patched:
        patched.setattr(job, "_write_overlays", fails)
        toto(*command, "--overwrite", cwd=home, code=1)
    path = tmp_path / "davis" / ANNOTATIONS / "two/00000.png"
    write_mask(path, np.roll(read_mask(path), 8, axis=1))
    assert "sequences are done" not in toto(*command, "--overwrite", cwd=home).stdout
