from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_clips import CODES, DEPTH, FRAMES, SIDE, WIDTH, ToyModel, toy_clips

from toto.backbones.config import LlamaConfig
from toto.data.batch import Batch
from toto.errors import DataError, RunError
from toto.evaluation.feature_cache import FeatureCache, load, save
from toto.evaluation.features import FeatureReader
from toto.model import AutoregressiveModel
from toto.tasks.next_token import to_frames
from toto.tokenizers.base import TokenGrid
from toto.tokenizers.config import DvaeConfig, PatchConfig

LAYERS = (0, 2)


def reader_of(clips, model=None, **changes):
    settings = {
        "layers": LAYERS,
        "num_classes": 3,
        "precision": "fp32",
        "dtype": torch.float32,
        "advance": lambda samples: None,
    }
    return FeatureReader(model or ToyModel(), nn.Identity(), clips, **{**settings, **changes})


def test_features_carry_tokens_means_and_variances():
    clips, model = toy_clips(5, 3, seed=0), ToyModel()
    batches = list(reader_of(clips, model).batches([4, 1, 2], 2))
    assert [batch.label_B.tolist() for batch in batches] == [
        clips.label_S[[4, 1]].tolist(),
        clips.label_S[[2]].tolist(),
    ]
    want = model.features(clips.codes_STHW[[4, 1]], None, LAYERS)
    for layer in LAYERS:
        got, x_BLD = batches[0].layers[layer], want[layer].detach()
        assert torch.equal(got.tokens_BLD, x_BLD)
        torch.testing.assert_close(got.mean_BD, x_BLD.mean(1))
        torch.testing.assert_close(got.var_BD, x_BLD.var(1, correction=0))
        assert got.length == FRAMES * SIDE * SIDE


def test_moments_are_those_of_the_rounded_tokens():
    (batch,) = reader_of(toy_clips(4, 3, seed=0), dtype=torch.bfloat16).batches(range(4), 4)
    kept = batch.layers[2]
    assert kept.tokens_BLD.dtype == torch.bfloat16
    torch.testing.assert_close(kept.mean_BD, kept.tokens_BLD.float().mean(1))


def test_no_tokens_are_kept_where_none_are_asked_for():
    (batch,) = reader_of(toy_clips(4, 3, seed=0), dtype=None).batches(range(4), 4)
    assert batch.layers[0].tokens_BLD is None
    assert batch.layers[0].mean_BD.shape == (4, WIDTH)


def test_the_models_start_is_not_pooled_and_layers_are_the_backbones():
    torch.manual_seed(0)
    tokenizer = DvaeConfig(num_codes=CODES, weights="random:0")
    model = AutoregressiveModel(tokenizer, LlamaConfig.model_validate({"preset": "tiny"}))
    clips = toy_clips(2, 3, seed=0)
    (batch,) = reader_of(clips, model).batches(range(2), 2)
    with torch.no_grad():
        embedded_BLD = model.interface.embed(clips.codes_STHW, torch.zeros(2, dtype=torch.bool))
        block_BLD = model.backbone.features(embedded_BLD, [2])[2]
    assert embedded_BLD.shape[1] == 1 + FRAMES * SIDE * SIDE
    torch.testing.assert_close(batch.layers[0].tokens_BLD, embedded_BLD[:, 1:])
    torch.testing.assert_close(batch.layers[2].tokens_BLD, block_BLD[:, 1:])
    assert not batch.layers[2].tokens_BLD.requires_grad


@pytest.mark.parametrize("context", [1, 2])
@pytest.mark.parametrize("is_image", [True, False])
def test_images_are_read_after_the_image_start_and_videos_after_that_of_videos(is_image, context):
    """After the other start id the features of all tokens differ, and nothing else would tell."""
    torch.manual_seed(0)
    tokenizer = DvaeConfig(num_codes=CODES, weights="random:0")
    model = AutoregressiveModel(tokenizer, LlamaConfig.model_validate({"preset": "tiny"}))
    clips = toy_clips(2, 3, seed=0)
    clips.codes_STHW, clips.is_image = clips.codes_STHW[:, :1], is_image
    (batch,) = reader_of(clips, model, context=context).batches(range(2), 2)
    together_BTHW = clips.codes_STHW.view(-1, context, SIDE, SIDE)
    count = len(together_BTHW)
    with torch.no_grad():
        right, wrong = (
            model.features(together_BTHW, torch.full((count,), start), [2])[2].reshape(
                batch.layers[2].tokens_BLD.shape
            )
            for start in (is_image, not is_image)
        )
    torch.testing.assert_close(batch.layers[2].tokens_BLD, right)
    assert (right - wrong).abs().amax(-1).min() > 1e-3, "the data can tell"


def test_bf16_is_the_models_precision_where_the_caller_says_so():
    class Seen(ToyModel):
        def features(self, frames, is_image_B, layers):
            self.enabled = torch.is_autocast_enabled("cpu")
            return super().features(frames, is_image_B, layers)

    for precision, want in (("bf16", True), ("fp32", False)):
        model = Seen()
        list(reader_of(toy_clips(2, 3, seed=0), model, precision=precision).batches([0], 1))
        assert model.enabled == want


def test_pixels_pass_through_the_tokenizer_frame_by_frame():
    class Brightness(nn.Module):
        def encode(self, pixels_BCHW):
            return TokenGrid((pixels_BCHW.mean((1, 2, 3)) * 255).round().long()[:, None, None])

    values = torch.arange(6, dtype=torch.uint8).view(2, 3, 1, 1, 1)
    batch = pixel_batch(values.expand(2, 3, 3, 4, 4))
    assert to_frames(Brightness(), batch).tolist() == [[[[0]], [[1]], [[2]]], [[[3]], [[4]], [[5]]]]


def test_pixels_become_patches_for_a_patch_tokenizer():
    pixels = torch.randint(256, (2, 3, 3, 8, 8), dtype=torch.uint8)
    frames = to_frames(PatchConfig(patch_size=4).build(), pixel_batch(pixels))
    assert frames.shape == (2, 3, 2, 2, 48)


def pixel_batch(pixels_BTCHW):
    zeros_B = torch.zeros(len(pixels_BTCHW), dtype=torch.int64)
    return Batch(pixels_BTCHW, None, zeros_B.bool(), zeros_B, zeros_B, zeros_B)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, None])
def test_cache_gives_what_was_read_in_any_order_and_takes_the_bytes_that_it_said(dtype):
    clips = toy_clips(7, 3, seed=0)
    reader = reader_of(clips, dtype=dtype)
    cache = FeatureCache.read(reader, [6, 1, 2, 5], 3)
    clips.reads = 0
    for got, want in zip(cache.batches([5, 6, 1], 2), reader.batches([5, 6, 1], 2), strict=True):
        assert all(map(torch.equal, got.tensors(), want.tensors()))
    assert clips.reads == 3, "the cache itself reads nothing"
    (everything,) = cache.batches([6, 1, 2, 5], 4)
    held = sum(x.nbytes for layer in everything.layers.values() for x in layer.tensors())
    tokens = reader.tokens_per_sample()
    assert held == FeatureCache.bytes_needed(4, len(LAYERS), tokens, WIDTH, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_a_cache_comes_back_from_the_disk_as_it_was(tmp_path, dtype):
    reader = reader_of(toy_clips(5, 3, seed=0), dtype=dtype)
    cache = FeatureCache.read(reader, [4, 1, 2], 2)
    save(tmp_path / "f", cache)
    loaded = load(tmp_path / "f", [4, 1, 2], LAYERS, torch.device("cpu"))
    for got, want in zip(loaded.batches([2, 4], 2), cache.batches([2, 4], 2), strict=True):
        assert all(map(torch.equal, got.tensors(), want.tensors()))
        assert got.layers[0].length == want.layers[0].length


def test_a_batch_is_read_in_pieces_that_make_no_difference():
    clips = toy_clips(7, 3, seed=0)
    (whole,) = reader_of(clips).batches(range(7), 7)
    advanced = []
    pieces = reader_of(clips, read_batch=3, advance=advanced.append).batches(range(7), 7)
    (joined,) = pieces
    assert all(map(torch.equal, joined.tensors(), whole.tensors()))
    assert advanced == [3, 3, 1]


def test_packed_pictures_share_a_sequence_each_after_those_before_it():
    torch.manual_seed(0)
    tokenizer = DvaeConfig(num_codes=CODES, weights="random:0")
    model = AutoregressiveModel(tokenizer, LlamaConfig.model_validate({"preset": "tiny"}))
    clips = toy_clips(8, 3, seed=0)
    clips.codes_STHW = clips.codes_STHW[:, :1]
    (packed,) = reader_of(clips, model, context=3).batches(range(8), 8)
    (single,) = reader_of(clips, model).batches(range(8), 8)
    for first, last in ((0, 3), (3, 6), (6, 8)):
        together = clips.codes_STHW[first:last].transpose(0, 1)
        with torch.no_grad():
            want = model.features(together, torch.zeros(1, dtype=torch.bool), LAYERS)
        for layer in LAYERS:
            got = packed.layers[layer].tokens_BLD[first:last]
            torch.testing.assert_close(got.flatten(0, 1), want[layer][0])
    alone, beside = single.layers[2].tokens_BLD, packed.layers[2].tokens_BLD
    torch.testing.assert_close(beside[[0, 3, 6]], alone[[0, 3, 6]])
    assert not torch.allclose(beside[[1, 2, 4, 5, 7]], alone[[1, 2, 4, 5, 7]], atol=1e-3)


def test_bytes_of_the_demo():
    needed = FeatureCache.bytes_needed(700, 7, 1024, 192, torch.bfloat16)
    assert needed == 700 * 7 * (1024 * 192 * 2 + 192 * 4 * 2)


def test_samples_without_label_are_refused_by_number():
    clips = toy_clips(4, 3, seed=0)
    clips.label_S[2] = -1
    with pytest.raises(DataError, match="sample 2 has no label"):
        list(reader_of(clips).batches(range(4), 3))


def test_unknown_classes_are_refused_by_number():
    clips = toy_clips(4, 3, seed=0)
    clips.label_S[3] = 3
    with pytest.raises(
        DataError, match=r"sample 3 is of class 3, but there are 3 classes \(0..2\)"
    ):
        list(reader_of(clips).batches(range(4), 4))


def test_features_that_are_not_finite_stop_the_run():
    with pytest.raises(RunError, match="features of layer 0 are not finite"):
        list(reader_of(toy_clips(4, 3, seed=0), ToyModel(scale=float("inf"))).batches([0], 1))


def test_every_layer_is_known_to_the_toy():
    assert max(LAYERS) == DEPTH
