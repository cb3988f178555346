"""Patch inputs from recipe to report: patches → patches and patches → codes."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from command_line import newest, toto, write_recipe
from tiny_runs import tiny_recipe

from toto.errors import UserError
from toto.loaded import load
from toto.tokenizers.config import DvaeConfig
from toto.tokenizers.weights import save_weights

PATCHES = {"name": "patch", "patch_size": 16}
GRID_2x2 = {"batch_tokens": 4 * 4 * 4, "steps": 4}


def patch_recipe(datasets, **changes):
    return tiny_recipe(datasets, **GRID_2x2) | {"tokenizer": PATCHES} | changes


def patch_dvae_recipe(datasets, **changes):
    dvae = tiny_recipe(datasets)["tokenizer"]
    return patch_recipe(datasets, target_tokenizer=dvae, **changes)


def lines_of(path):
    return [json.loads(line) for line in path.open()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_datasets):
    """A folder with a run of patches → dVAE codes: 32-px frames in, codes of 16 px out."""
    folder = tmp_path_factory.mktemp("patches")
    done = toto("train", write_recipe(folder, patch_dvae_recipe(tiny_datasets)), cwd=folder)
    assert "patches of patch at 32 px → next code of dvae, of the same crop at 16 px" in done.stdout
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_the_loss_is_in_nats_a_code_beside_its_baselines(trained):
    lines = lines_of(trained / "runs/tiny/metrics.jsonl")
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[0] == pytest.approx(torch.tensor(32.0).log().item(), rel=0.1)
    last = [line for line in lines if line["kind"] == "eval"][-1]["sources"]["videos"]
    assert len(last["frame_loss"]) == len(last["frame_unigram"]) == 4
    assert last["loss"] == pytest.approx(sum(last["frame_loss"]) / 4), "the end is left out"
    assert 0 < last["unigram"] < 4
    assert last["copy"] <= last["unigram"]


def test_codes_of_patches_are_probed_and_reported(copied):
    toto("probe", "--pool", "attention", "--pool", "average", "--set", "epochs=1", cwd=copied)
    rows = lines_of(newest(copied / "runs/tiny", "probe") / "results.jsonl")
    assert {(row["head"], row["layer"]) for row in rows} == {
        (head, layer) for head in ("attention", "average") for layer in (0, 1)
    }
    toto("report", cwd=copied)
    page = (copied / "runs/tiny/report.html").read_text()
    assert "loss (nats/token)" in page
    assert "squared error" not in page
    assert "Originals above their reconstructions" in page
    assert "target_tokenizer" in page


def test_patches_are_regressed_through_an_mlp_probed_and_reported(tmp_path, tiny_datasets):
    raw = patch_recipe(tiny_datasets)
    raw["backbone"]["patch_readout"] = "mlp"
    done = toto("train", write_recipe(tmp_path, raw), cwd=tmp_path)
    assert "next patch (squared error of normalised pixels)" in done.stdout
    assert "inputs: pixels, normalised by ImageNet's mean and std" in done.stdout
    assert "= 16, with the start 17" in done.stdout
    lines = lines_of(tmp_path / "runs/tiny/metrics.jsonl")
    (last, *_) = [line["sources"]["videos"] for line in lines[::-1] if line["kind"] == "eval"]
    assert 0 < last["loss"] < 1.1, "the mean of every patch costs at most 1"
    assert "unigram" not in last
    for pool in ("attention", "average"):
        toto("probe", "--pool", pool, "--set", "epochs=1", cwd=tmp_path)
    toto("report", cwd=tmp_path)
    page = (tmp_path / "runs/tiny/report.html").read_text()
    assert "loss (squared error)" in page
    assert "nats" not in page.partition("<h2>How to repeat it")[0]
    assert "patches are the pixels themselves" in page


def test_codes_of_patches_cannot_be_generated(trained):
    done = toto("generate", cwd=trained, code=2)
    assert (
        "has patch inputs, and what it predicts are codes, which it cannot take in" in done.stderr
    )
    assert "whose tokenizer gives codes" in done.stderr


@pytest.fixture
def older(tmp_path, tiny_datasets):
    """A folder with a run of before `tokenizer.input_norm`, whose records do not name it."""
    raw = patch_recipe(tiny_datasets)
    recipe = write_recipe(tmp_path, raw)
    toto("train", recipe, "--set", "tokenizer.input_norm=patch", cwd=tmp_path)
    for path in tmp_path.glob("runs/tiny/checkpoints/*/checkpoint.json"):
        meta = json.loads(path.read_text())
        del meta["recipe"]["tokenizer"]["input_norm"]
        path.write_text(json.dumps(meta))
    recorded = tmp_path / "runs/tiny/recipe.yaml"
    recorded.write_text(recorded.read_text().replace("  input_norm: patch\n", ""))
    assert "input_norm" not in recorded.read_text()
    return tmp_path


def test_an_older_run_keeps_the_inputs_that_it_was_trained_on(older, monkeypatch):
    toto("probe", "--pool", "average", "--set", "epochs=1", cwd=older)
    toto("report", cwd=older)
    done = toto("finetune", "--resolution", "4x4", "--steps", "2", cwd=older)
    assert "normalised by the mean and std of each patch" in done.stdout
    monkeypatch.chdir(older)
    model = load("runs/tiny")
    assert model.recipe.tokenizer.input_norm == "patch"
    pixels = torch.rand(1, 4, 3, 32, 32)
    patches = model.encode(pixels)
    torch.testing.assert_close(patches.mean(-1), torch.zeros(1, 4, 2, 2), atol=1e-5, rtol=0)


def test_an_older_run_is_continued_under_its_inputs_or_refused(older):
    recipe = "tiny.yaml"
    done = toto("train", recipe, "--resume", cwd=older, code=2)
    assert "tokenizer.input_norm: 'patch' before, 'imagenet' now" in done.stderr
    assert "add --set tokenizer.input_norm=patch or start" in " ".join(done.stderr.split())
    toto("train", recipe, "--resume", "--set", "tokenizer.input_norm=patch", cwd=older)
    start = ["--set", "init_from=runs/tiny", "--output", "runs/next"]
    done = toto("train", recipe, *start, cwd=older, code=2)
    assert 'tokenizer.input_norm: "patch" in the parent, "imagenet" in this recipe' in done.stderr
    toto("train", recipe, *start, "--set", "tokenizer.input_norm=patch", cwd=older)


def test_what_a_patch_model_predicts_is_no_image(older, monkeypatch):
    monkeypatch.chdir(older)
    done = toto("generate", cwd=older, code=2)
    assert "normalised by its own mean and std" in " ".join(done.stderr.split())
    model = load("runs/tiny")
    with pytest.raises(UserError, match="patches cannot be generated"):
        model.generate(torch.rand(1, 1, 3, 32, 32), frames=1)
    with pytest.raises(UserError, match="patches have no codes to decode"):
        model.decode(torch.zeros(1, 1, 2, 2, dtype=torch.int64))


def test_a_larger_grid_is_finetuned_with_the_targets_at_theirs(copied):
    done = toto("finetune", "--resolution", "4x4", "--steps", "2", cwd=copied)
    assert "patches of patch at 64 px → next code of dvae, of the same crop at 32 px" in done.stdout
    meta = json.loads(
        (copied / "runs/tiny-finetune/checkpoints/step-00000002/checkpoint.json").read_text()
    )
    assert meta["target_tokenizer"] is not None
    assert meta["target_tokenizer"] != meta["tokenizer"]


def test_other_weights_of_the_target_tokenizer_are_refused(tmp_path, tiny_datasets):
    """By whatever looks at the targets: resuming, starting from the run, reporting on it."""
    sizes = {"num_codes": 32, "width": 8, "blocks_per_group": 1, "decoder_stem": 8}
    weights = tmp_path / "dvae.safetensors"

    def draw(seed: int) -> None:
        save_weights(DvaeConfig(weights=f"random:{seed}", **sizes).build(), weights)

    draw(0)
    raw = patch_dvae_recipe(tiny_datasets)
    raw["target_tokenizer"]["weights"] = str(weights)
    recipe = write_recipe(tmp_path, raw)
    toto("train", recipe, "--set", "training.save_every=2", cwd=tmp_path)
    shutil.rmtree(tmp_path / "runs/tiny/checkpoints/step-00000004")
    draw(1)
    done = toto("train", recipe, "--resume", "--set", "training.save_every=2", cwd=tmp_path, code=2)
    assert "target_tokenizer: not the weights that runs/tiny/checkpoints" in done.stderr
    done = toto("report", cwd=tmp_path, code=2)
    assert "was trained with another tokenizer" in done.stderr
    toto("probe", "--pool", "average", "--set", "epochs=1", cwd=tmp_path)  # needs no targets
    start = ["--set", "init_from=runs/tiny", "--output", "runs/next"]
    done = toto("train", recipe, *start, cwd=tmp_path, code=2)
    assert "target_tokenizer: the weights that" in done.stderr
    assert "have changed since. Put back those of the parent" in done.stderr
    draw(0)
    toto("train", recipe, *start, cwd=tmp_path)


def test_a_start_from_another_vocabulary_names_it(copied, tiny_datasets):
    more = patch_dvae_recipe(tiny_datasets, init_from="runs/tiny")
    more["target_tokenizer"]["num_codes"] = 48
    done = toto("train", write_recipe(copied, more, "more.yaml"), cwd=copied, code=2)
    assert "init_from: runs/tiny/checkpoints" in done.stderr
    assert "target_tokenizer.num_codes: 32 in the parent, 48 in this recipe" in done.stderr
    assert not (copied / "runs/more").exists()
    regress = patch_recipe(tiny_datasets, init_from="runs/tiny")
    done = toto("train", write_recipe(copied, regress, "regress.yaml"), cwd=copied, code=2)
    assert re.search(r"\n  target_tokenizer: .* in the parent, null in this recipe", done.stderr)


def test_token_shards_are_refused_before_anything_is_written(tmp_path, tiny_datasets):
    raw = tiny_recipe(tiny_datasets)
    recipe = write_recipe(tmp_path, raw)
    toto("tokenize", tiny_datasets / "videos-val", "tokens", "--recipe", recipe, cwd=tmp_path)
    patches = patch_dvae_recipe(tiny_datasets)
    patches["data"] = {"root": str(tmp_path), "sources": {"videos": {"path": "tokens"}}}
    done = toto("train", write_recipe(tmp_path, patches, "p.yaml"), cwd=tmp_path, code=2)
    assert "which are cut out of pixels. Name the raw shards" in done.stderr
    assert not (tmp_path / "runs/p").exists()
    once = ["--set", "data.tokens=once"]
    done = toto("train", tmp_path / "p.yaml", *once, cwd=tmp_path, code=2)
    assert "data.tokens: tokenizer patch gives patches" in done.stderr


def test_show_says_both_resolutions(tmp_path, tiny_datasets):
    recipe = write_recipe(tmp_path, patch_dvae_recipe(tiny_datasets))
    done = toto("show", recipe, cwd=tmp_path)
    assert "# prediction: patches of patch at 32 px → next code of dvae" in done.stdout
    assert "at 16 px (cross-entropy)" in done.stdout
    assert "# vocabulary: 36" in done.stdout
