import importlib.util

import numpy as np
import pytest

from toto.data import moving_digits
from toto.data.index import Dataset
from toto.data.moving_digits import (
    bouncing_digit,
    make_moving_digits,
    read_digits,
    rows_of_split,
)

if importlib.util.find_spec("sklearn") is None:
    pytest.skip("scikit-learn is not installed", allow_module_level=True)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(moving_digits, "VIDEOS", {"train": 4, "val": 2})


def test_two_datasets_are_made_and_stay(few, tmp_path):
    calls = []
    make_moving_digits(tmp_path / "root", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(number, 6) for number in range(1, 7)]
    train = Dataset.open(tmp_path / "root" / "moving-train")
    assert (train.num_samples, train.classes) == (4, tuple("0123456789"))
    make_moving_digits(tmp_path / "root", progress=lambda done, total: calls.append((done, total)))
    assert len(calls) == 6
    make_moving_digits(tmp_path / "again")
    for path in (tmp_path / "root" / "moving-val").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / "moving-val" / path.name).read_bytes()


def test_the_digits_of_the_splits_are_apart():
    _, labels_N = read_digits()
    rows = {
        split: {row for rows in rows_of_split(labels_N, split) for row in rows}
        for split in ("train", "val")
    }
    assert not rows["train"] & rows["val"]
    assert len(rows["train"]) + len(rows["val"]) == len(labels_N) == 1797


def test_a_digit_moves_by_its_speed_over_a_still_background():
    black, white = np.zeros((64, 64, 3)), np.full(3, 255.0)
    frames_THWC = bouncing_digit(np.ones((8, 8)), 20, white, black, np.random.default_rng(0))
    assert frames_THWC.shape == (32, 64, 64, 3)
    places_T2 = np.stack([np.argwhere(frame[..., 0] > 0).mean(0) for frame in frames_THWC])
    assert all((frame > 0).sum() == 3 * 20 * 20 for frame in frames_THWC)
    steps = np.linalg.norm(np.diff(places_T2, axis=0), axis=1)
    assert 1 <= np.median(steps) <= 3
    assert steps.max() < 3 + 2**0.5  # rounding moves both axes by half a pixel at either end


def test_a_digit_bounces():
    places = [moving_digits._bounce(place, 4) for place in (0, 3, 4, 5, 8, 9, -1)]
    assert places == [0, 3, 4, 3, 0, 1, 1]
