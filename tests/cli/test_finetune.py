"""`toto finetune` as a user types it: with probes, without labels, and to tell classes apart."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from command_line import newest, toto, write_recipe
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import TIMES, tiny_recipe

from toto.data.config import ClipConfig
from toto.data.index import Dataset
from toto.data.pack import pack_folder
from toto.jobs.accuracy import HeldOut
from toto.jobs.sources import Source
from toto.recipe.yaml_reader import read_yaml
from toto.tasks.config import Labels
from toto.training.distributed import Ranks


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_datasets):
    """A folder with a run of labelled videos and pictures without labels."""
    folder = tmp_path_factory.mktemp("user")
    toto("train", write_recipe(folder, tiny_recipe(tiny_datasets, steps=2)), cwd=folder)
    return folder


def lines(run, kind):
    found = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in found
        if line["kind"] == kind
    ]


FINETUNE = (
    "finetune", "runs/tiny", "--resolution", "8x8", "--rope-base", "50000", "--steps", "4",
    "--set", "training.save_every=2", "--set", "training.eval_every=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def probed(trained):
    """What `toto finetune` says on data with labels."""
    return toto(*FINETUNE, cwd=trained)


def test_labels_are_probed_at_every_layer(trained, probed):
    assert "next-token loss, and probes at every layer on the labels of videos" in probed.stdout
    run = trained / "runs/tiny-finetune"
    recipe = read_yaml(run / "recipe.yaml")
    assert recipe["task"]["name"] == "next_token_probes"
    assert recipe["task"]["probes"]["sources"] == ["videos"]
    assert recipe["optimizer"]["layer_decay"] == 0.9
    trained_lr = read_yaml(trained / "runs/tiny/recipe.yaml")["optimizer"]["lr"]
    # The paper's 6e-5 (§4.2) over the 3e-4 of its pre-training (§3.3).
    assert recipe["optimizer"]["lr"] == pytest.approx(trained_lr * 6e-5 / 3e-4)
    assert recipe["backbone"]["rope_base"] == 50000
    assert (recipe["clip"]["resolution"], recipe["clip"]["frames"]) == (64, 1)
    evaluation = lines(run, "eval")[-1]["sources"]["videos"]
    by_layer = evaluation["accuracy/attention/0.003"]
    assert len(by_layer) == 2
    assert evaluation["accuracy"] >= max(by_layer)
    assert evaluation["loss"] > 0
    assert lines(run, "train")[-1]["metrics"]["probe_loss"] > 0
    rows = [json.loads(row) for row in (newest(run, "finetune") / "results.jsonl").open()]
    assert {(row["layer"], row["head"], row["lr"]) for row in rows} == {
        (layer, head, lr)
        for layer in (0, 1)
        for head in ("average", "attention")
        for lr in (1e-3, 3e-3)
    }
    assert {row["weight_decay"] for row in rows} == {recipe["optimizer"]["weight_decay"]} == {0.1}
    summary = json.loads((newest(run, "finetune") / "summary.json").read_text())
    assert (summary["train_samples"], summary["source"], summary["step"]) == (12, "videos", 4)
    assert "chance 50.0%" in probed.stdout


def test_what_another_grid_makes_of_sequences_is_said(trained, probed):
    said = " ".join(probed.stdout.split())
    assert "a sequence: 1 frame × 8 × 8 tokens = 64; trained were 4 frames × 4 × 4 = 64" in said
    assert "videos become single frames (videos)" in said
    assert "a frame: 64 × 64 px instead of 32 × 32" in said
    for source in ("videos", "pictures"):
        assert f"images of {source} are enlarged 2 times, from 32 px" in said
    plain = toto("finetune", "runs/tiny", "--steps", "1", "--output", "runs/same", cwd=trained)
    assert "enlarged" not in plain.stdout
    assert "single frames" not in plain.stdout
    shutil.rmtree(trained / "runs/same")


def test_single_frames_are_not_compared_with_copying(trained, probed):
    run = trained / "runs/tiny-finetune"
    evaluation = lines(run, "eval")[-1]["sources"]["videos"]
    assert {"unigram", "frame_unigram"} <= evaluation.keys()
    assert not {"copy", "frame_copy"} & evaluation.keys()
    toto("report", "runs/tiny-finetune", cwd=trained)
    page = (run / "report.html").read_text()
    assert "Loss by frame" not in page
    assert not any(word in page for word in ("copy last frame", "opying", "− copy"))
    assert "model − unigram" in page
    toto("report", "runs/tiny", cwd=trained)
    page = (trained / "runs/tiny/report.html").read_text()
    assert "Loss by frame" in page
    assert "copying the last frame" in page


def test_a_resumed_run_with_probes_repeats_the_unbroken_one(trained, probed):
    run = trained / "runs/tiny-finetune"
    again = trained / "runs/again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints/step-00000004")
    toto(*FINETUNE, "--output", "runs/again", "--resume", cwd=trained)
    for kind in ("train", "eval"):
        assert lines(again, kind) == lines(run, kind)
    for file in ("model", "optimizer-00000-of-00001"):
        expected, found = (
            load_file(one / f"checkpoints/step-00000004/{file}.safetensors") for one in (run, again)
        )
        assert any("probes." in name for name in expected)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (newest(again, "finetune") / "results.jsonl").read_text() == (
        newest(run, "finetune") / "results.jsonl"
    ).read_text()
    shutil.rmtree(again)


def test_the_model_goes_on_without_its_probes(trained, probed):
    done = toto("generate", "runs/tiny-finetune", "--samples", "1", "--frames", "1",
                "--prompt-frames", "0", cwd=trained)  # fmt: skip
    assert "1 frames" in done.stdout
    toto("report", "runs/tiny-finetune", cwd=trained)
    done = toto(
        "finetune", "runs/tiny-finetune", "--steps", "2", "--output", "runs/twice", cwd=trained
    )
    assert "weights from runs/tiny-finetune/checkpoints/step-00000004" in done.stdout
    shutil.rmtree(trained / "runs/twice")


def test_without_labels_the_next_token_is_all(trained):
    done = toto(
        "finetune", "runs/tiny", "--steps", "2", "--output", "runs/plain",
        "--set", "data.sources={pictures: {path: pictures}}", cwd=trained,
    )  # fmt: skip
    assert "no labels: next-token loss only, no probes" in done.stdout
    task = read_yaml(trained / "runs/plain/recipe.yaml")["task"]
    assert task == {"name": "next_token_probes", "probes": None}
    assert not (trained / "runs/plain/eval").exists()
    done = toto(
        "finetune", "runs/tiny", "--classify",
        "--set", "data.sources={pictures: {path: pictures}}", cwd=trained, code=2,
    )  # fmt: skip
    assert "--classify: no source of runs/tiny/checkpoints/step-00000002 has labels" in done.stderr


def test_classes_are_learned_through_the_whole_model(trained):
    done = toto("finetune", "runs/tiny", "--classify", "--steps", "2",
                "--set", "task={name: classify, mixup: 0.8, label_smoothing: 0.1, drop_path: 0.1}",
                cwd=trained)  # fmt: skip
    assert "classes of videos, through the whole model under full attention" in done.stdout
    assert "full attention → class, from layer -1 through average pooling" in done.stdout
    run = trained / "runs/tiny-classify"
    recipe = read_yaml(run / "recipe.yaml")
    assert list(recipe["data"]["sources"]) == ["videos"]
    assert recipe["mask"]["name"] == "full"
    assert 0 <= lines(run, "eval")[-1]["sources"]["videos"]["accuracy"] <= 1
    (row,) = [json.loads(row) for row in (newest(run, "classify") / "results.jsonl").open()]
    assert (row["layer"], row["chance"]) == (1, 0.5)
    for words in (["generate", "runs/tiny-classify"],
                  ["analyze", "token-loss", "runs/tiny-classify", "videos"]):  # fmt: skip
        done = toto(*words, cwd=trained, code=2)
        assert "learned to tell classes apart, and no longer predicts tokens" in done.stderr
    toto("report", "runs/tiny-classify", cwd=trained)
    page = (run / "report.html").read_text()
    assert "of classes are right" not in page, "all held-out samples are scored: one accuracy"
    assert "The model classifies all validation samples of videos: " in page
    assert "this model learned classes, and no longer predicts tokens" in page
    assert "toto generate" not in page
    assert "No video has been generated" not in page


def test_tokens_cannot_be_mixed(trained, tiny_datasets, tmp_path):
    toto("tokenize", tiny_datasets / "videos-train", tmp_path / "tokens", "--recipe",
         write_recipe(tmp_path, tiny_recipe(tiny_datasets)), cwd=trained)  # fmt: skip
    done = toto("finetune", "runs/tiny", "--classify", "--steps", "2", "--output", "runs/mixed",
                "--set", "task.mixup=0.8",
                "--set", f"data.sources={{videos: {{path: {tmp_path / 'tokens'}}}}}",
                cwd=trained, code=2)  # fmt: skip
    assert "holds tokens, and task.mixup mixes pixels" in done.stderr


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Packed pictures of two classes."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(6):
        path = folder / "raw" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (40 * number, 0, 0)).save(path)
    pack_folder(folder / "raw", folder / "packed")
    return folder / "packed"


def test_pictures_are_probed_in_their_sequences_and_classified_one_by_one(trained, pictures):
    source = f"data.sources={{mine: {{path: {pictures}}}}}"
    done = toto("finetune", "runs/tiny", "--steps", "2", "--output", "runs/mine",
                "--set", source, cwd=trained)  # fmt: skip
    assert "no labelled source has held-out samples with labels" in done.stdout
    assert lines(trained / "runs/mine", "train")[-1]["metrics"]["probe_loss"] > 0
    done = toto("finetune", "runs/tiny", "--steps", "2", "--classify", "--set", source,
                "--output", "runs/one", cwd=trained)  # fmt: skip
    assert read_yaml(trained / "runs/one/recipe.yaml")["clip"]["frames"] == 1
    done = toto("finetune", "runs/tiny", "--steps", "2", "--classify", "--set", source,
                "--frames", "4", "--output", "runs/four", cwd=trained, code=2)  # fmt: skip
    assert "Write clip.frames: 1" in done.stderr
    both = source[:-1] + ", other: {path: videos-train}}"
    done = toto("finetune", "runs/tiny", "--steps", "2", "--output", "runs/both", "--set", both,
                cwd=trained)  # fmt: skip
    assert (
        "labels of other are not used: it has the classes down, right and lacks a, b, unlike "
        in done.stdout
    )
    assert "at every layer on the labels of mine" in done.stdout


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_the_held_out_samples(pictures, world):
    dataset = Dataset.open(pictures)
    source = Source("mine", dataset, dataset, 1.0, ClipConfig(frames=4, resolution=32))
    (part,) = HeldOut.of([source], Labels((0,), 2, is_image=True))
    dealt = [list(part.batches(4, Ranks(rank, world))) for rank in range(world)]
    assert {len(batches) for batches in dealt} == {{1: 2, 2: 1, 4: 1}[world]}
    scored = [batch for batches in dealt for batch in batches if not batch.padding]
    assert sorted(n for batch in scored for n in batch.position_B.tolist()) == list(range(6))
    assert all(batch.frames().shape[1] == 1 for batch in scored)
    assert all(batch.source_B.eq(0).all() for batch in scored)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task={name: next_token_probes, probes: {sources: [nobody]}}"], "there is no source nob"),
        (["task={name: next_token_probes, probes: {sources: [videos], heads: [average, average]}}"],
         "heads names one twice"),
        (["task={name: next_token_probes, probes: {sources: [pictures]}}"], "has no labels, and"),
        (["task=classify"], "data.sources.pictures: .* has no labels, and task classify learns"),
        (["task=classify", "mask={name: prefix, frames: 1}"], "task classify predicts classes"),
        (["mask.name=full"], "full is for task classify"),
        (["task=classify", "mask.name=full", "backbone={name: mamba, preset: tiny}"],
         "mamba does not work under full"),
        (["task={name: classify, layer: 2}"], "there is no layer 2"),
        (["task={name: classify, mixup: 1}", "training.micro_batch=1"], "training.micro_batch is"),
        (["task={name: classify, mixup: 1}", "data.tokens=once"], "mixes pixels, and"),
        (["optimizer.layer_decay=1.1"], "less than or equal to 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(trained, tmp_path, overrides, message):
    settings = [part for override in overrides for part in ("--set", override)]
    done = toto("train", trained / "tiny.yaml", *settings, cwd=tmp_path, code=2)
    assert re.search(message, done.stderr.replace("\n", " ")), done.stderr
    assert not list(tmp_path.rglob("recipe.yaml"))
