from __future__ import annotations

import numpy as np
import pytest
from toy_data import token_dataset

from toto.data.clips import LabelledDataset
from toto.data.config import ClipConfig
from toto.data.transforms import square, squeeze
from toto.data.views import CentreView, GridViews, RandomViews
from toto.errors import DataError


def gradient(height: int, width: int) -> np.ndarray:
    """Red tells the row, green the column."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[..., 0] = np.arange(height)[:, None]
    frame[..., 1] = np.arange(width)
    return np.stack([frame, frame])


def test_clips_begin_at_shares_of_the_room_and_one_in_the_middle():
    assert [GridViews(4, 3).start(100, 0, draw) for draw in range(12)] == [
        0, 0, 0, 25, 25, 25, 50, 50, 50, 75, 75, 75,
    ]  # fmt: skip
    assert GridViews(1, 3).start(100, 0, 2) == 50
    assert CentreView().start(7, 0, 3) == 3


def test_three_squares_touch_both_ends_and_the_centre_lies_between():
    frames = gradient(8, 20)
    views = GridViews(1, 3)
    lefts = [views.cut(frames, 8, 0, draw)[0, 0, 0, 1] for draw in range(3)]
    assert lefts == [0, 6, 12]
    tops = [views.cut(gradient(20, 8), 8, 0, draw)[0, 0, 0, 0] for draw in range(3)]
    assert tops == [0, 6, 12]
    centre = CentreView().cut(frames, 8, 0, 0)
    assert np.array_equal(GridViews(5, 1).cut(frames, 8, 0, 4), centre)


def test_random_parts_are_of_the_promised_area_ratio_and_place_and_half_are_mirrored():
    frames = gradient(200, 240)
    views = RandomViews(3)
    areas, ratios, mirrored, rows = [], [], 0, []
    for sample in range(300):
        cut = views.cut(frames, 32, sample, 1)
        assert cut.shape == (2, 32, 32, 3)
        assert np.array_equal(cut[0], cut[1]), "one part for the whole clip"
        red, green = cut[0, :, 16, 0].astype(int), cut[0, 16, :, 1].astype(int)
        tall = (red[-1] - red[0]) * 32 / 31
        broad = abs(green[-1] - green[0]) * 32 / 31
        mirrored += green[0] > green[-1]
        areas.append(tall * broad / (200 * 240))
        ratios.append(broad / tall)
        rows.append(red[0])
    assert 0.06 < min(areas) < 0.15
    assert 0.85 < max(areas) < 1.05
    assert 0.5 < np.mean(areas) < 0.58
    assert 0.7 < min(ratios) < 0.85
    assert max(ratios) < 1.4
    assert 120 < mirrored < 180
    assert len(set(rows)) > 50


def test_a_draw_is_a_function_of_seed_sample_and_number():
    frames = gradient(40, 60)

    def cut(seed, sample, draw):
        return RandomViews(seed).cut(frames, 16, sample, draw).tobytes()

    assert cut(0, 1, 2) == cut(0, 1, 2)
    assert len({cut(0, 1, 2), cut(1, 1, 2), cut(0, 2, 2), cut(0, 1, 3), cut(2, 1, 0)}) == 5
    starts = {RandomViews(0).start(3, sample, 0) for sample in range(50)}
    assert starts == {0, 1, 2, 3}
    assert RandomViews(0).start(0, 5, 5) == 0


def test_a_flat_frame_leaves_parts_inside_it():
    for sample in range(50):
        assert RandomViews(0).cut(gradient(2, 200), 8, sample, 0).shape == (2, 8, 8, 3)


def test_what_is_square_is_resized_as_ever():
    frames = gradient(40, 60)
    want = square(frames, 16, crop_y=0.5, crop_x=0.5)
    assert np.array_equal(squeeze(frames[:, :, 10:50], 16), want)


@pytest.mark.parametrize("views", [GridViews(1, 3), RandomViews(0)])
def test_crops_of_tokens_are_refused(tmp_path, views, monkeypatch):
    dataset = token_dataset(tmp_path / "d", [20])
    monkeypatch.setattr(type(dataset), "classes", property(lambda self: ("a",)))
    clip = ClipConfig(frames=2, stride=1, resolution=32)
    with pytest.raises(DataError, match="holds tokens of centre squares"):
        LabelledDataset(dataset, clip, views)
