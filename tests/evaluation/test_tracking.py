from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_davis import FRAMES, HEIGHT, WIDTH, make_davis

from toto.backbones.config import LlamaConfig
from toto.data.davis import DavisSequence, open_davis
from toto.data.transforms import squeeze
from toto.errors import RunError
from toto.evaluation.propagation import PRESETS
from toto.evaluation.tracking import FrameFeatures, score_copies, score_masks, track
from toto.model import AutoregressiveModel
from toto.tokenizers.config import DvaeConfig, PatchConfig, TokenizerConfig

TINY = {"num_codes": 32, "width": 8, "blocks_per_group": 1, "decoder_stem": 8}
CODES = DvaeConfig.model_validate(TINY | {"weights": "random:0"})
PATCHES = PatchConfig(patch_size=8)


def features_of(
    config: TokenizerConfig, layers: tuple[int, ...] = (0, 2), resolution: int = 64
) -> FrameFeatures:
    torch.manual_seed(0)
    model = AutoregressiveModel(config, LlamaConfig.model_validate({"preset": "tiny"}))
    return FrameFeatures(model.eval(), config.build().eval(), layers, resolution, "image", "fp32")


@pytest.fixture
def sequences(tmp_path: Path) -> list[DavisSequence]:
    return open_davis(make_davis(tmp_path / "davis"))


@pytest.mark.parametrize("config", [CODES, PATCHES])
def test_features_are_those_of_a_sequence_of_one_frame(config, sequences):
    features = features_of(config)
    picture_HWC = sequences[0].picture(1)
    found = features.read(picture_HWC)
    assert {layer: tuple(x.shape) for layer, x in found.items()} == dict.fromkeys(
        (0, 2), (8, 8, 64)
    )
    pixels = torch.from_numpy(squeeze(picture_HWC[None], 64)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        grid = features.tokenizer.encode(pixels)
        tokens = grid.codes_BHW if config is CODES else grid.patches_BHWC
        wanted = features.model.features(tokens[None], torch.tensor([True]), [2])[2]
    torch.testing.assert_close(found[2].flatten(0, 1), wanted[0])
    of_video = dataclasses.replace(features, start="video").read(picture_HWC)
    assert not torch.allclose(of_video[2], found[2]), "the start is read by every token"


@pytest.mark.parametrize("preset", PRESETS)
def test_masks_have_the_size_and_the_ids_of_the_annotation(preset, sequences):
    found = list(track(sequences[1], features_of(PATCHES), PRESETS[preset]))
    assert len(found) == FRAMES - 1
    for masks in found:
        assert list(masks) == [0, 2]
        for ids_HW in masks.values():
            assert (ids_HW.shape, ids_HW.dtype) == ((HEIGHT, WIDTH), np.uint8)
            assert set(np.unique(ids_HW)) <= {0, 1, 2}


def test_what_does_not_move_keeps_its_mask(sequences):
    """Every frame is the first one: each token finds itself."""
    still = dataclasses.replace(sequences[1], frames=sequences[1].frames[:1] * FRAMES)
    *_, last = track(still, features_of(PATCHES, (0,)), PRESETS["crw"])
    assert (last[0] == still.truth(0)).mean() > 0.9


def test_moving_squares_are_tracked_better_than_by_copies(sequences):
    """A square moves by one patch a frame, so that its patches find themselves."""
    sequence = sequences[0]
    found = [{}, *track(sequence, features_of(PATCHES, (0,), WIDTH), PRESETS["dino"])]
    scores = score_masks(sequence, lambda index: (found[index][0], "found"))
    copies = score_copies(sequence)
    assert scores[0].j.mean > copies[0].j.mean + 0.3
    assert copies[0].j.decay > 0, "the square moves away from its first mask"


def test_true_masks_score_one(sequences):
    for score in score_masks(sequences[1], lambda index: (sequences[1].truth(index), "truth")):
        assert (score.j.mean, score.f.mean, score.j.decay) == (1.0, 1.0, 0.0)


def test_features_that_are_not_finite_stop_it(sequences):
    features = features_of(CODES)
    with torch.no_grad():
        next(features.model.backbone.parameters()).fill_(torch.nan)
    with pytest.raises(RunError, match="features of layer 2 are not finite"):
        features.read(sequences[0].picture(0))
