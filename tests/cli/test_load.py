"""toto.load, as a user's program calls it."""

from __future__ import annotations

import pytest
import torch
from command_line import toto, write_recipe
from tiny_runs import tiny_recipe

import toto as library
from toto.errors import CheckpointError, UserError
from toto.generation.config import SamplingConfig
from toto.loaded import LoadedModel


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, tiny_datasets) -> LoadedModel:
    folder = tmp_path_factory.mktemp("user")
    raw = tiny_recipe(tiny_datasets, steps=2)
    raw["training"]["compile"] = False
    toto("train", write_recipe(folder, raw), cwd=folder)
    return library.load(folder / "runs/tiny")


def pixels_of(loaded: LoadedModel, frames: int = 2) -> torch.Tensor:
    side = loaded.recipe.clip.resolution
    return torch.rand(2, frames, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_pixels_become_codes_and_features(loaded):
    pixels = pixels_of(loaded)
    codes = loaded.encode(pixels)
    height, width = loaded.recipe.tokenizer.grid(loaded.recipe.clip.resolution)
    assert codes.shape == (2, 2, height, width)
    assert loaded.decode(codes).shape == pixels.shape
    found = loaded.features(pixels, [0, -1])
    assert found[0].shape == (2, 2, height, width, loaded.recipe.backbone.width)
    video, images = found[-1], loaded.features(pixels, [-1], images=True)[-1]
    assert not torch.equal(video, images)


def test_a_model_is_seen_otherwise_than_it_was_trained(loaded):
    run = loaded.trained.found.run
    codes = torch.randint(32, (1, 2, 4, 4), generator=torch.Generator().manual_seed(0))
    other = codes.clone()
    other[:, 1] = 31 - other[:, 1]

    @torch.no_grad()
    def first_frame(model, frames):
        is_image_B = torch.zeros(1, dtype=torch.bool)
        return model.trained.model.features(frames, is_image_B, [-1])[-1][:, :16]

    torch.testing.assert_close(first_frame(loaded, other), first_frame(loaded, codes))
    full = library.load(run, attention="full")
    assert (first_frame(full, other) - first_frame(full, codes)).abs().max() > 1e-5
    turned = library.load(run, rope_base=50_000.0)
    assert (first_frame(turned, codes) - first_frame(loaded, codes)).abs().max() > 1e-5
    side = 2 * loaded.recipe.clip.resolution
    larger = library.load(run, resolution=side)
    height, width = loaded.recipe.tokenizer.grid(side)
    found = larger.features(torch.rand(1, 1, 3, side, side), [-1])[-1]
    assert found.shape[2:4] == (height, width)
    with pytest.raises(UserError, match="Crop and resize"):
        larger.encode(pixels_of(loaded))


def test_more_frames_than_trained_are_refused_unless_asked_for(loaded):
    run, trained = loaded.trained.found.run, loaded.recipe.clip.frames
    longer = pixels_of(loaded, trained + 1)
    with pytest.raises(UserError) as error:
        loaded.features(longer, [-1])
    assert f"{trained + 1} frames in a sequence" in str(error.value)
    assert f"toto.load(RUN, frames={trained + 1})" in str(error.value)
    with pytest.raises(UserError, match="takes at most"):
        loaded.generate(longer, 1)
    extended = library.load(run, frames=trained + 1)
    assert extended.features(longer, [-1])[-1].shape[1] == trained + 1
    same = extended.features(longer[:, :trained], [-1])[-1]
    torch.testing.assert_close(same, loaded.features(longer[:, :trained], [-1])[-1])


def test_precision_is_chosen(loaded):
    run = loaded.trained.found.run
    exact = library.load(run, precision="fp32")
    rounded = library.load(run, precision="bf16")
    assert (loaded.precision, exact.precision, rounded.precision) == ("fp32", "fp32", "bf16")
    pixels = pixels_of(loaded)
    ours, theirs = (model.features(pixels, [-1])[-1] for model in (exact, rounded))
    assert theirs.dtype == torch.float32
    assert 0 < (ours - theirs).abs().max() < 0.1
    assert torch.equal(exact.encode(pixels), rounded.encode(pixels))


def test_generation_goes_on_after_the_prompt(loaded):
    pixels = pixels_of(loaded)
    video = loaded.generate(pixels, 3, sampling=SamplingConfig(top_k=4), seeds=[5, 6])
    assert video.shape == (2, 5, *pixels.shape[2:])
    torch.testing.assert_close(video[:, :2], loaded.decode(loaded.encode(pixels)))
    alone = loaded.generate(pixels[1:], 3, sampling=SamplingConfig(top_k=4), seeds=[6])
    torch.testing.assert_close(alone[0], video[1])
    pictures = loaded.generate(
        pixels, 3, sampling=SamplingConfig(top_k=4), seeds=[5, 6], images=True
    )
    assert not torch.equal(pictures[:, 2:], video[:, 2:])


def test_mistakes_are_named(loaded, tmp_path):
    with pytest.raises(UserError, match="Crop and resize"):
        loaded.encode(pixels_of(loaded)[..., :-8])
    with pytest.raises(UserError, match="Divide uint8 by 255"):
        loaded.encode(255 * pixels_of(loaded))
    with pytest.raises(CheckpointError, match="no run at"):
        library.load(tmp_path / "nothing")
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = library.laod
