"""toto tokenizer eval, as a user types it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from command_line import toto, write_recipe
from PIL import Image
from safetensors.torch import save_file
from tiny_runs import tiny_recipe

from toto.data.clips import read_clip
from toto.data.config import ClipConfig
from toto.data.index import Dataset
from toto.evaluation.reconstruction import measure
from toto.evaluation.tokenizer_baselines import CellMean
from toto.recipe.reader import read_recipe
from toto.tokenizers.official import OFFICIAL, weights_path
from toto.tokenizers.weights import save_weights

PLUGIN = """
from toto.api import TokenGrid, Tokenizer, TokenizerConfig, register_tokenizer

class Half(Tokenizer):
    def encode(self, pixels_BCHW):
        return TokenGrid((pixels_BCHW.mean(1) > 0.5).long())
    def decode(self, grid):
        return grid.codes_BHW[:, None].expand(-1, 3, -1, -1).float()

@register_tokenizer("half")
class HalfConfig(TokenizerConfig):
    weights: str | None = None
    @property
    def codebook_size(self):
        return 2
    def grid(self, resolution):
        return resolution, resolution
    def build(self):
        return Half(self)
"""


@pytest.fixture
def recipe(tmp_path, tiny_datasets):
    return write_recipe(tmp_path, tiny_recipe(tiny_datasets))


def evaluate(folder, dataset, *options, code=0):
    return toto("tokenizer", "eval", dataset, "out", *options, cwd=folder, code=code)


def results(folder):
    return json.loads((folder / "out/evaluation.json").read_text())


def test_the_numbers_are_those_of_the_spread_pictures(tmp_path, tiny_datasets, recipe):
    done = evaluate(tmp_path, tiny_datasets / "pictures", "--tokenizer", recipe, "--samples", "3")
    dataset = Dataset.open(tiny_datasets / "pictures")
    clip = ClipConfig(frames=1, stride=1, resolution=32)
    pictures = np.concatenate([read_clip(dataset, i, 0, clip) for i in (1, 3, 5)])
    pixels_BCHW = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    tokenizer = read_recipe(str(recipe)).tokenizer.build().eval()
    expected = measure(tokenizer, [pixels_BCHW])
    written = results(tmp_path)
    found = written["tokenizers"]["tiny"]
    assert found["psnr"] == pytest.approx(expected.psnr)
    assert found["ssim"] == pytest.approx(expected.ssim)
    assert found["codebook"]["used"] == expected.codebook.used
    assert found["codebook"]["tokens"] == 3 * 4 * 4
    assert found["fingerprint"] == tokenizer.fingerprint()
    assert (found["resolution"], found["grid"]) == (32, [4, 4])
    assert written["dataset"]["fingerprint"] == dataset.fingerprint()
    assert (written["dataset"]["frames"], written["dataset"]["pictures"]) == (7, 3)
    assert [shown["sample"] for shown in written["shown"]] == list(range(7))
    assert f"{expected.psnr:.2f}" in done.stdout
    assert f"{expected.codebook.used} of 32" in done.stdout
    cell_mean, k_means = written["baselines"]
    mean = measure(CellMean((4, 4)), [pixels_BCHW])
    assert (cell_mean["name"], cell_mean["psnr"]) == ("cell mean", pytest.approx(mean.psnr))
    assert (k_means["name"], k_means["codebook"]["size"]) == ("k-means", 32)
    assert "k-means is fitted on images of the dataset that are not measured" in done.stdout
    warning = f"warning: tiny keeps less ({expected.psnr:.2f} dB) than the mean colour of each cell"
    assert expected.psnr < mean.psnr, "its weights are random"
    assert warning in " ".join(done.stdout.split())


def test_tokenizers_of_other_kinds_and_sizes_stand_in_one_sheet(tmp_path, tiny_datasets, recipe):
    raw = tiny_recipe(tiny_datasets) | {"tokenizer": {"name": "patch", "patch_size": 8}}
    raw["clip"] = raw["clip"] | {"resolution": 64}
    raw["training"]["batch_tokens"] = 4 * 4 * 64
    patch = write_recipe(tmp_path, raw, "patch.yaml")
    named = ("--tokenizer", recipe, "--tokenizer", patch, "--tokenizer", recipe)
    labels = ("--label", "dvae", "--label", "patches", "--label", "the dvae again")
    done = evaluate(tmp_path, tiny_datasets / "videos-val", *named, *labels, "--samples", "5")
    assert "a tokenizer of continuous patches has no codebook" in done.stdout
    assert "compare them within one" in done.stdout
    assert "30 of 30 pictures" in done.stdout
    found = results(tmp_path)
    first, patches, again = found["tokenizers"].values()
    assert list(found["tokenizers"]) == ["dvae", "patches", "the dvae again"]
    assert first == again
    assert patches["codebook"] is None
    assert patches["psnr"] > 90
    assert patches["resolution"] == 64
    assert found["dataset"]["frames"] == 6 * 12
    assert found["shown"][0]["frame"] == 4
    with Image.open(tmp_path / "out/reconstructions.png") as sheet:
        # Originals at two sizes and three reconstructions, all shown at 2 × 64 px, eight abreast.
        assert sheet.height > 5 * 128
        assert sheet.width > 8 * 128


def test_weights_say_whose_they_are(tmp_path, tiny_datasets, recipe):
    save_weights(read_recipe(str(recipe)).tokenizer.build(), tmp_path / "w.safetensors")
    weights = ("--tokenizer", "w.safetensors")
    done = evaluate(tmp_path, tiny_datasets / "pictures", *weights, code=2)
    assert "--tokenizer w.safetensors: weights do not say at which resolution" in done.stderr
    shipped = ("--tokenizer", "toto:dvae-tiny")
    side = ("--resolution", "64")
    evaluate(tmp_path, tiny_datasets / "pictures", *weights, *shipped, *side)
    found = results(tmp_path)["tokenizers"]
    assert list(found) == ["w", "dvae-tiny"]
    assert found["w"]["tokenizer"]["num_codes"] == 32
    assert found["dvae-tiny"]["resolution"] == 64


def test_published_weights_are_named_as_in_a_recipe(tmp_path, tiny_datasets, recipe, monkeypatch):
    monkeypatch.setenv("TOTO_HOME", str(tmp_path / "home"))
    tokenizer = read_recipe(str(recipe)).tokenizer
    sizes = tokenizer.model_dump(exclude={"weights", "name"})
    monkeypatch.setitem(OFFICIAL, "dvae", replace(OFFICIAL["dvae"], sizes=sizes))
    command = ("--tokenizer", "official:dvae", "--resolution", "32")
    done = evaluate(tmp_path, tiny_datasets / "pictures", *command, code=2)
    assert "Fetch it once: toto weights get dvae" in done.stderr
    weights_path("dvae").parent.mkdir(parents=True)
    save_weights(tokenizer.build(), weights_path("dvae"))
    evaluate(tmp_path, tiny_datasets / "pictures", *command)
    assert results(tmp_path)["tokenizers"]["dvae"]["fingerprint"] == tokenizer.build().fingerprint()


def test_the_plugin_of_a_weights_file_is_imported_by_the_user(tmp_path, tiny_datasets):
    (tmp_path / "mine.py").write_text(PLUGIN)
    save_file({}, tmp_path / "w.safetensors", metadata={"tokenizer": '{"name": "half"}'})
    command = ("--tokenizer", "w.safetensors", "--resolution", "32")
    done = evaluate(tmp_path, tiny_datasets / "pictures", *command, code=2)
    assert "w.safetensors: 1 mistake\n  tokenizer: unknown tokenizer 'half'" in done.stderr
    evaluate(tmp_path, tiny_datasets / "pictures", *command, "--import", "mine.py")
    assert results(tmp_path)["tokenizers"]["w"]["codebook"]["used"] == 2


def test_weights_that_do_not_say_whose_they_are_need_a_recipe(tmp_path, tiny_datasets):
    save_file({}, tmp_path / "w.safetensors")
    command = ("--tokenizer", "w.safetensors")
    done = evaluate(tmp_path, tiny_datasets / "pictures", *command, code=2)
    assert "does not say which tokenizer it belongs to" in done.stderr
    assert "Name a recipe whose tokenizer has `weights: w.safetensors`" in done.stderr


def test_mistakes_are_found_before_anything_is_measured(tmp_path, tiny_datasets, recipe):
    pictures = tiny_datasets / "pictures"
    two = ("--tokenizer", recipe, "--tokenizer", recipe)
    done = evaluate(tmp_path, pictures, *two, code=2)
    assert "two are called 'tiny'. Tell them apart with a --label each" in done.stderr
    done = evaluate(tmp_path, pictures, *two, "--label", "one", code=2)
    assert "--label: 1 given for 2" in done.stderr
    done = evaluate(tmp_path, pictures, "--tokenizer", recipe, "--resolution", "36", code=2)
    assert f"--tokenizer {recipe}: 36 px is no multiple of 8 px per token; 32 is" in done.stderr
    done = evaluate(tmp_path, pictures, "--tokenizer", recipe, "--resolution", "8", code=2)
    assert "smaller than the window of SSIM, 11 px" in done.stderr
    done = evaluate(tmp_path, pictures, "--tokenizer", tiny_datasets, code=2)
    assert "holds no tokenizer.safetensors" in done.stderr
    done = evaluate(tmp_path, pictures, "--tokenizer", "quickstrat", code=2)
    assert "Did you mean quickstart?" in done.stderr
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/evaluation.json").write_text("mine")
    done = evaluate(tmp_path, pictures, "--tokenizer", recipe, code=2)
    assert "out holds evaluation.json, which toto tokenizer eval did not write" in done.stderr


def test_tokens_cannot_be_compared_with_originals(tmp_path, tiny_datasets, recipe):
    toto("tokenize", tiny_datasets / "pictures", "codes", "--recipe", recipe, cwd=tmp_path)
    done = evaluate(tmp_path, "codes", "--tokenizer", recipe, code=2)
    assert "codes holds tokens, and originals are needed" in done.stderr
