"""`toto features`: files of features for a user's own videos."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from command_line import toto, write_recipe
from safetensors.torch import load_file
from tiny_runs import tiny_recipe

import toto.evaluation.feature_files as feature_files
from toto.data.clips import read_clip
from toto.data.index import Dataset
from toto.jobs.trained import load_trained, resolve_run
from toto.tokenizers.base import TokenGrid


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_datasets):
    folder = tmp_path_factory.mktemp("user")
    raw = tiny_recipe(tiny_datasets, steps=2)
    toto("train", write_recipe(folder, raw), cwd=folder)
    return folder


def read(out):
    index = json.loads((out / "index.json").read_text())
    tensors = {}
    for file in {sample["file"] for sample in index["samples"]}:
        tensors |= load_file(out / file)
    return index, tensors


def by_hand(folder, clip_TRRC, layers):
    """What the model says of one video, without any of the code that is tested."""
    run = load_trained(resolve_run(str(folder / "runs/tiny")))
    pixels = torch.from_numpy(clip_TRRC.copy()).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        grid = run.tokenizer.encode(pixels)
        assert isinstance(grid, TokenGrid)
        codes = grid.codes_BHW[None]
        found = run.model.features(codes, torch.zeros(1, dtype=torch.bool), layers)
    return {k: x[0].view(*codes.shape[1:], -1) for k, x in found.items()}


def test_a_packed_dataset_gives_the_models_features_of_each_middle(trained, tiny_datasets):
    data = tiny_datasets / "videos-val"
    toto("features", "runs/tiny", data, "out", "--batch", "4", cwd=trained)
    index, tensors = read(trained / "out")
    dataset = Dataset.open(data)
    assert index["layers"] == [0, 1]
    assert index["origin"]["data"] == dataset.fingerprint()
    assert [sample["name"] for sample in index["samples"]] == list(dataset.origins())
    assert index["classes"] == list(dataset.classes)
    assert len(index["classes"]) == 2
    labels = [sample["label"] for sample in index["samples"]]
    assert labels == [int(dataset.label(number)) for number in range(6)]
    assert set(labels) == {0, 1}
    assert len(tensors) == 6 * 2
    clip = resolve_run(str(trained / "runs/tiny")).recipe.clip
    for number in (0, 5):
        assert index["samples"][number]["shape"] == [4, 4, 4, 64]
        pixels = read_clip(dataset, number, (12 - clip.span) // 2, clip)
        for layer, want in by_hand(trained, pixels, [0, 1]).items():
            got = tensors[f"{number}.{layer}"]
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_a_folder_may_hold_pictures_and_videos_of_any_length(trained, tiny_folders, tmp_path):
    (tmp_path / "mine").mkdir()
    shutil.copy(tiny_folders / "videos-val/right/100.mp4", tmp_path / "mine/b.mp4")
    shutil.copy(tiny_folders / "pictures/0.png", tmp_path / "mine/a.png")
    (tmp_path / "mine/notes.txt").write_text("no picture")
    (tmp_path / "mine/.hidden.png").write_text("no picture")
    done = toto(
        "features", "runs/tiny", tmp_path / "mine", tmp_path / "out", "--layers=-1",
        "--frames", "9", "--stride", "2", "--dtype", "bf16", cwd=trained,
    )  # fmt: skip
    assert "at most 9 × 4 × 4 × 64 bf16 each" in done.stdout
    index, tensors = read(tmp_path / "out")
    shapes = {sample["name"]: sample["shape"] for sample in index["samples"]}
    assert shapes == {"a.png": [1, 4, 4, 64], "b.mp4": [6, 4, 4, 64]}
    assert index["classes"] == []
    assert {sample["label"] for sample in index["samples"]} == {None}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    toto("features", "runs/tiny", tmp_path / "mine/a.png", tmp_path / "one", cwd=trained)
    assert [s["name"] for s in read(tmp_path / "one")[0]["samples"]] == ["a.png"]


def test_an_interrupted_writing_goes_on_and_others_are_refused(
    trained, tiny_datasets, tmp_path, monkeypatch
):
    monkeypatch.setattr(feature_files, "SHARD_BYTES", 2 * 2 * 4 * 16 * 64 * 4)  # two samples
    data, out = tiny_datasets / "videos-val", tmp_path / "out"
    read_shard, read_so_far = feature_files._read_shard, []

    def stops(*arguments):
        if len(read_so_far) == 2:
            raise KeyboardInterrupt
        read_so_far.append(arguments[-1])
        return read_shard(*arguments)

    monkeypatch.setattr(feature_files, "_read_shard", stops)
    toto("features", "runs/tiny", data, out, cwd=trained, code=130)
    assert not out.exists()
    done = toto("features", "runs/tiny", data, out, "--layers", "0", cwd=trained, code=2)
    assert "was begun with other settings or another model" in done.stderr
    read_so_far.clear()
    toto("features", "runs/tiny", data, out, cwd=trained)
    assert read_so_far == [range(4, 6)]
    index, tensors = read(out)
    assert len({sample["file"] for sample in index["samples"]}) == 3
    assert len(tensors) == 12
    assert sorted(path.name for path in out.iterdir()) == [
        "features-00000.safetensors", "features-00001.safetensors", "features-00002.safetensors",
        "index.json",
    ]  # fmt: skip
    done = toto("features", "runs/tiny", data, out, cwd=trained, code=2)
    assert "out exists already" in done.stderr


@pytest.fixture
def shards_read(monkeypatch):
    """The samples of every shard of two that is computed."""
    monkeypatch.setattr(feature_files, "SHARD_BYTES", 2 * 2 * 4 * 16 * 64 * 4)
    read_shard, found = feature_files._read_shard, []

    def noted(*arguments):
        tensors = read_shard(*arguments)
        found.append(arguments[-1])
        return tensors

    monkeypatch.setattr(feature_files, "_read_shard", noted)
    return found


def test_finished_shards_survive_the_removal_of_a_bad_file(
    trained, tiny_folders, tmp_path, shards_read
):
    for number, path in enumerate(sorted((tiny_folders / "videos-val").rglob("*.mp4"))):
        (tmp_path / "mine").mkdir(exist_ok=True)
        shutil.copy2(path, tmp_path / f"mine/{number}.mp4")
    bad = tmp_path / "mine/2.mp4"
    bad.write_bytes(b"no video")
    command = ("features", "runs/tiny", tmp_path / "mine", tmp_path / "out")
    done = toto(*command, cwd=trained, code=2)
    assert "2.mp4: " in done.stderr
    assert "Repair the file or remove it" in done.stderr
    bad.unlink()
    toto(*command, cwd=trained)
    assert shards_read == [range(2), range(2, 4), range(4, 5)]
    index, tensors = read(tmp_path / "out")
    assert [sample["name"] for sample in index["samples"]] == [f"{n}.mp4" for n in (0, 1, 3, 4, 5)]
    assert len(tensors) == 10


def test_finished_shards_survive_the_exclusion_of_a_bad_sample(
    trained, tiny_datasets, tmp_path, shards_read
):
    shutil.copytree(tiny_datasets / "videos-val", tmp_path / "data")
    frames = np.fromfile(tmp_path / "data/frames.u32", "<u4")
    frames[3] = 500  # its middle is not there
    frames.tofile(tmp_path / "data/frames.u32")
    manifest = json.loads((tmp_path / "data/manifest.json").read_text())
    for shard in manifest["shards"]:
        del shard["columns"]  # as datasets had none before, in which nothing else tells
    (tmp_path / "data/manifest.json").write_text(json.dumps(manifest | {"checksum": None}))
    command = ("features", "runs/tiny", tmp_path / "data", tmp_path / "out")
    toto(*command, cwd=trained, code=2)
    toto("doctor", tmp_path / "data", "--frames", "1", "--fix", cwd=trained)
    toto(*command, cwd=trained)
    assert shards_read == [range(2), range(2, 4), range(4, 5)]
    assert len(read(tmp_path / "out")[1]) == 10


def test_a_file_that_changed_is_computed_again(trained, tiny_folders, tmp_path, shards_read):
    files = sorted((tiny_folders / "videos-val").rglob("*.mp4"))
    (tmp_path / "mine").mkdir()
    for number in range(3):
        shutil.copy2(files[number], tmp_path / f"mine/{number}.mp4")
    (tmp_path / "mine/3.mp4").write_bytes(b"no video")
    command = ("features", "runs/tiny", tmp_path / "mine", tmp_path / "out")
    toto(*command, cwd=trained, code=2)
    shutil.copy2(files[5], tmp_path / "mine/0.mp4")
    shutil.copy2(files[4], tmp_path / "mine/3.mp4")
    toto(*command, cwd=trained)
    assert shards_read == [range(2), range(2), range(2, 4)]


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        ("nowhere", [], "nothing at nowhere"),
        ("empty", [], "holds neither a packed dataset nor pictures or videos"),
        ("note.txt", [], "by its ending neither a picture"),
        ("broken.mp4", [], "Repair the file or remove it"),
        ("empty", ["--layers", "9"], "layer 9 does not exist"),
        ("empty", ["--layers", "x"], "--layers x"),
    ],
)
def test_what_cannot_be_read_is_refused(trained, data, more, message):
    (trained / "empty").mkdir(exist_ok=True)
    (trained / "note.txt").write_text("a")
    (trained / "broken.mp4").write_text("a")
    done = toto("features", "runs/tiny", data, "refused", *more, cwd=trained, code=2)
    assert message in done.stderr
    assert not (trained / "refused").exists()
