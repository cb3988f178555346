"""`toto generate`: every kind of prompt, and what bad ones are answered with."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from command_line import newest, toto, write_recipe
from PIL import Image
from tiny_runs import tiny_recipe

import toto as toto_package
from toto.data.decode import iterate_video
from toto.data.encode import encode_h264
from toto.data.index import Dataset
from toto.errors import UserError
from toto.folders import MARKER
from toto.jobs import generated_folder
from toto.jobs.prompts import PromptRequest, find_prompts
from toto.model import AutoregressiveModel
from toto.recipe.reader import check_recipe
from toto.sequence import IMAGE_START_ID, VIDEO_START_ID


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_datasets):
    """A folder in which `toto train` ran: a context of 4 frames, every second of a video."""
    folder = tmp_path_factory.mktemp("user")
    raw = tiny_recipe(tiny_datasets, steps=2, eval_every=2, eval_sequences=1)
    # One that was trained: the pictures of random weights are all of one code.
    sizes = {"num_codes": 1024, "width": 32, "blocks_per_group": 1, "decoder_stem": 64}
    raw["tokenizer"] = {"name": "dvae", "weights": "toto:dvae-tiny"} | sizes
    toto("train", write_recipe(folder, raw), cwd=folder)
    return folder


@pytest.fixture
def folder(trained, tmp_path, tiny_folders):
    """That run, with a video of 12 frames and its frames 0 and 2 as pictures."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    shutil.copy(tiny_folders / "videos-val/down/100.mp4", tmp_path / "clip.mp4")
    frames = list(iterate_video((tmp_path / "clip.mp4").read_bytes()))
    for name, frame in (("a.png", frames[0]), ("b.png", frames[2])):
        Image.fromarray(frame).save(tmp_path / name)
    return tmp_path


def generated(folder, out=None):
    """What generated.json says, once every file that it should have is next to it."""
    place = newest(folder / "runs/tiny", "generate") if out is None else folder / out
    record = json.loads((place / "generated.json").read_text())
    kinds = ("gif", "mp4", "png")
    files = {f"sample-{n}.{kind}" for n in range(len(record["samples"])) for kind in kinds}
    assert {path.name for path in place.iterdir()} == files | {"generated.json", MARKER}
    return record


def frames_in(path):
    with Image.open(path) as image:
        return image.n_frames


def width_of(path):
    with Image.open(path) as image:
        return image.size[0]


def test_a_file_is_continued_as_the_same_held_out_video_is(folder, tiny_folders):
    toto("generate", "--frames", "2", "--samples", "1", "--out", "held", cwd=folder)
    held = generated(folder, "held")
    assert (held["prompts"], held["source"]) == ("held-out", "videos")
    shutil.copy(tiny_folders / "videos-val" / held["samples"][0]["prompt"], folder / "clip.mp4")
    toto("generate", "--prompt", "clip.mp4", "--frames", "2", "--samples", "2", cwd=folder)
    record = generated(folder)
    assert (record["prompts"], record["source"]) == ("files", None)
    assert [sample["prompt"] for sample in record["samples"]] == ["clip.mp4"] * 2
    assert [sample["seed"] for sample in record["samples"]] == [0, 1]
    ours = [
        (newest(folder / "runs/tiny", "generate") / f"sample-{n}.png").read_bytes() for n in (0, 1)
    ]
    assert (folder / "held/sample-0.png").read_bytes() == ours[0]
    assert ours[0] != ours[1]


def test_a_sample_is_that_of_its_seed_whatever_else_is_asked_for(folder):
    toto("generate", "--prompt", "clip.mp4", "--frames", "2", "--samples", "3", cwd=folder)
    several = ["--prompt", "a.png", "--prompt", "clip.mp4", "--samples", "1", "--seed", "2"]
    toto("generate", *several, "--frames", "2", "--out", "alone", cwd=folder)
    samples = generated(folder, "alone")["samples"]
    assert [(one["prompt"], one["prompt_frames"], one["seed"]) for one in samples] == [
        ("a.png", 1, 2), ("clip.mp4", 2, 2),
    ]  # fmt: skip
    third = (newest(folder / "runs/tiny", "generate") / "sample-2.png").read_bytes()
    assert (folder / "alone/sample-1.png").read_bytes() == third


def test_generation_goes_on_beyond_the_context(folder):
    done = toto("generate", "--prompt", "clip.mp4", "--frames", "9", "--samples", "1", cwd=folder)
    assert "generating: 9 of 9 frames" in done.stdout
    assert frames_in(newest(folder / "runs/tiny", "generate") / "sample-0.gif") == 2 + 9
    done = toto(
        "generate", "--prompt", "clip.mp4", "--prompt-frames", "6", "--samples", "1", cwd=folder
    )
    assert "of the 6 frames given, the model sees the last 2" in done.stdout


def test_the_start_alone_gives_samples_without_anything_real(folder):
    unconditional = ["--prompt-frames", "0", "--frames", "3", "--samples", "2"]
    done = toto("generate", *unconditional, "--out", "new/videos", cwd=folder)
    assert "generating 3 frames after the start, sequences: 2" in done.stdout
    videos = generated(folder, "new/videos")
    assert (videos["prompts"], videos["start"]) == ("start", "video")
    assert [(one["prompt_frames"], one["seed"]) for one in videos["samples"]] == [(0, 0), (0, 1)]
    assert frames_in(folder / "new/videos/sample-0.gif") == 3
    toto("generate", *unconditional, "--start", "image", "--out", "new/pictures", cwd=folder)
    assert generated(folder, "new/pictures")["start"] == "image"
    toto("generate", "--prompt", "clip.mp4", "--frames", "1", "--samples", "1", cwd=folder)
    beside = newest(folder / "runs/tiny", "generate") / "sample-0.gif"
    assert width_of(beside) > 1.9 * width_of(folder / "new/videos/sample-0.gif")


def test_pictures_of_a_sequence_are_the_frames_of_one_prompt(folder):
    frames = iterate_video((folder / "clip.mp4").read_bytes())
    (folder / "short.mp4").write_bytes(encode_h264(np.stack(list(frames)[:4]), fps=5))
    frames = list(iterate_video((folder / "short.mp4").read_bytes()))
    for name, frame in (("a.png", frames[0]), ("b.png", frames[2])):
        Image.fromarray(frame).save(folder / name)
    options = ["--frames", "2", "--samples", "1"]
    toto("generate", "--prompt", "short.mp4", *options, "--out", "video", cwd=folder)
    toto("generate", "--sequence", "a.png,b.png", *options, "--out", "sequence", cwd=folder)
    assert generated(folder, "sequence")["samples"][0]["prompt_frames"] == 2
    sheet = (folder / "sequence/sample-0.png").read_bytes()
    assert (folder / "video/sample-0.png").read_bytes() == sheet
    toto("generate", "--sequence", "b.png,a.png", *options, "--out", "turned", cwd=folder)
    assert (folder / "turned/sample-0.png").read_bytes() != sheet
    apart = ["--prompt", "a.png", "--prompt", "b.png"]
    toto("generate", *apart, *options, "--out", "apart", cwd=folder)
    samples = generated(folder, "apart")["samples"]
    assert [(one["prompt"], one["prompt_frames"]) for one in samples] == [
        ("a.png", 1),
        ("b.png", 1),
    ]


def test_the_start_id_reaches_the_model(folder, monkeypatch):
    read = []

    def next_logits(self, ids_BL, cache, original=AutoregressiveModel.next_logits):
        read.append(ids_BL)
        return original(self, ids_BL, cache)

    monkeypatch.setattr(AutoregressiveModel, "next_logits", next_logits)
    for start, expected in (("video", VIDEO_START_ID), ("image", IMAGE_START_ID)):
        read.clear()
        options = ["--frames", "1", "--samples", "1", "--start", start]
        toto("generate", "--prompt-frames", "0", *options, cwd=folder)
        assert [ids_BL.shape[1] for ids_BL in read] == [1] * 16
        assert read[0].tolist() == [[expected]]
        read.clear()
        toto("generate", "--sequence", "a.png,b.png", *options, cwd=folder)
        assert read[0].shape == (1, 1 + 2 * 16)
        assert read[0][0, 0] == expected


def test_the_report_tells_what_was_given(folder):
    toto("generate", "--sequence", "a.png,b.png", "--frames", "1", "--samples", "1", cwd=folder)
    toto("report", cwd=folder)
    page = (folder / "runs/tiny/report.html").read_text()
    assert "1 sequence of 1 frame was generated after prompts from files" in page
    assert "a.png,b.png, seed 0" in page


def test_other_files_are_never_replaced(folder):
    (folder / "mine").mkdir()
    toto("generate", "--frames", "1", "--samples", "2", "--out", "mine", cwd=folder)
    one = ("generate", "--frames", "1", "--samples", "1", "--out", "mine")
    refused = toto(*one, cwd=folder, code=2).stderr
    assert "mine exists already, with a result of toto generate" in refused
    assert len(generated(folder, "mine")["samples"]) == 2
    toto(*one, "--overwrite", cwd=folder)
    assert len(generated(folder, "mine")["samples"]) == 1
    (folder / "mine/notes.txt").write_text("keep")
    done = toto("generate", "--out", "mine", cwd=folder, code=2)
    assert "mine holds notes.txt, which toto generate did not write" in done.stderr
    assert (folder / "mine/notes.txt").read_text() == "keep"
    done = toto("generate", "--out", "clip.mp4", cwd=folder, code=2)
    assert "clip.mp4 is a file" in done.stderr
    done = toto("generate", "--out", "clip.mp4/in", cwd=folder, code=2)
    assert "clip.mp4/in cannot be written: Not a directory" in done.stderr
    (folder / "empty").mkdir()
    done = toto("generate", folder / "runs/tiny", "--out", ".", cwd=folder / "empty", code=2)
    assert "is the current folder" in done.stderr


def test_held_out_data_without_a_video_left_is_named(folder, monkeypatch):
    monkeypatch.setattr(Dataset, "kept", lambda dataset: np.empty(0, dtype=np.int64))
    done = toto("generate", cwd=folder, code=2)
    assert "excluded.jsonl leaves no video" in done.stderr


def test_nothing_half_written_is_left(folder, monkeypatch):
    toto("generate", "--frames", "1", "--samples", "1", cwd=folder)
    before = generated(folder)

    def full(path, image):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(generated_folder, "write_png", full)
    done = toto("generate", "--frames", "2", "--samples", "1", cwd=folder, code=1)
    assert "No space left on device" in done.stderr
    assert generated(folder) == before
    assert {path.name for path in (folder / "runs/tiny").iterdir() if path.name[0] == "."} == set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "no.mp4"], "no file at no.mp4"),
        (["--prompt", "notes.txt"], "by its ending neither a picture (jpeg, jpg, png, webp) nor"),
        (["--prompt", "broken.mp4"], "broken.mp4: no readable video"),
        (["--prompt", "broken.png"], "broken.png: no JPEG, PNG or WebP"),
        (
            ["--prompt", "clip.mp4", "--prompt-frames", "7"],
            "clip.mp4 has 6 frames at stride 2, and the prompt takes 7. Lower --prompt-frames",
        ),
        (["--prompt-frames", "7"], "has 6 frames at stride 2, and the prompt takes 7"),
        (["--sequence", "a.png,clip.mp4"], "clip.mp4 is a video, and a sequence is made of"),
        (["--sequence", "a.png,,b.png"], "--sequence a.png,,b.png: an empty name"),
        (["--sequence", "a.png", "--prompt-frames", "1"], "Leave it out"),
        (["--prompt", "a.png", "--prompt-frames", "0"], "there are files to begin with"),
        (["--prompt", "a.png", "--source", "videos"], "--prompt-frames 0 take none"),
        (["--prompt-frames", "0", "--source", "videos"], "--prompt-frames 0 take none"),
        (["--source", "pictures"], "sources with held-out videos are videos"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_prompts_are_answered_with_the_mend(folder, options, message):
    (folder / "notes.txt").write_text("no picture")
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "broken.png").write_bytes(b"no picture")
    done = toto("generate", *options, cwd=folder, code=2)
    assert message in done.stderr
    assert not (folder / "runs/tiny/eval").exists()


def test_a_context_of_one_frame_continues_nothing(trained, tmp_path):
    shutil.copytree(trained / "runs", tmp_path / "runs")
    for file in (tmp_path / "runs").rglob("*"):
        if file.name in ("recipe.yaml", "checkpoint.json"):
            text = file.read_text()
            text = text.replace("frames: 4", "frames: 1").replace('"frames": 4', '"frames": 1')
            file.write_text(text)
    done = toto("generate", "--samples", "1", cwd=tmp_path, code=2)
    assert "runs/tiny was trained on sequences of one frame" in " ".join(done.stderr.split())
    assert not (tmp_path / "runs/tiny/eval").exists()
    with pytest.raises(UserError, match="no frame of a prompt would be seen"):
        toto_package.load(tmp_path / "runs/tiny").generate(torch.rand(1, 1, 3, 32, 32), 1)
    toto("report", "runs/tiny", cwd=tmp_path)
    page = (tmp_path / "runs/tiny/report.html").read_text()
    assert "Not possible: this model was trained on sequences of one frame" in page
    toto("generate", "--prompt-frames", "0", "--frames", "1", "--samples", "1", cwd=tmp_path)


def test_without_held_out_videos_the_other_prompts_are_named(tiny_datasets):
    raw = tiny_recipe(tiny_datasets)
    del raw["data"]["sources"]["videos"]
    recipe = check_recipe(raw | {"name": "tiny", "output": "runs/tiny"}, "tiny")
    request = PromptRequest(
        files=(), sequences=(), source=None, prompt_frames=None, frames=1, samples=1, seed=0
    )
    with pytest.raises(UserError, match=r"videos are none\..* --prompt-frames 0"):
        find_prompts(request, recipe)
