from __future__ import annotations

import math

import numpy as np
import pytest

from toto.errors import DataError
from toto.evaluation import tracking_metrics
from toto.evaluation.tracking_metrics import (
    ObjectScore,
    SequenceScorer,
    Statistics,
    TrackingScores,
    border_similarity,
    region_similarity,
    scored_frames,
)


def blobs(seed: int, height: int = 45, width: int = 61, count: int = 4) -> np.ndarray:
    """A mask of a few rectangles, some of them at the border of the picture."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), bool)
    for _ in range(count):
        y, x = rng.integers(-5, height), rng.integers(-5, width)
        h, w = rng.integers(1, 18, 2)
        mask[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] ^= True
    return mask


def plain_border(mask: np.ndarray) -> set[tuple[int, int]]:
    """Pixel by pixel, as the official code words it: last row and column apart, corner never."""
    height, width = mask.shape
    found = set()
    for y in range(height):
        for x in range(width):
            neighbours = []
            if x + 1 < width:
                neighbours.append((y, x + 1))
            if y + 1 < height:
                neighbours.append((y + 1, x))
            if x + 1 < width and y + 1 < height:
                neighbours.append((y + 1, x + 1))
            if any(mask[y, x] != mask[place] for place in neighbours):
                found.add((y, x))
    return found


def plain_f(truth: np.ndarray, found: np.ndarray) -> float:
    radius = math.ceil(0.008 * math.hypot(*truth.shape))
    a, b = plain_border(truth), plain_border(found)
    if not a or not b:
        return float(not a and not b)

    def share(points, others):
        near = [any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in others) for y, x in points]
        return sum(near) / len(points)

    precision, recall = share(b, a), share(a, b)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("seed", range(8))
def test_f_is_what_its_definition_gives(seed):
    truth, found = blobs(seed), blobs(seed) ^ blobs(seed + 100, count=1)
    assert border_similarity(truth, found) == plain_f(truth, found)
    assert border_similarity(truth, blobs(seed + 50)) == plain_f(truth, blobs(seed + 50))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("radius", [1, 2, 5, 8])
def test_the_fast_dilation_is_the_plain_one(seed, radius):
    mask = blobs(seed)
    fast = tracking_metrics._dilate(mask, radius)
    assert np.array_equal(fast, tracking_metrics._dilate_plainly(mask, radius))


def test_j_is_overlap_over_union():
    truth, found = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert region_similarity(truth, found) == 1.0, "nothing, and nothing found"
    truth[:2] = True
    assert region_similarity(truth, found) == 0.0
    found[1:3] = True
    assert region_similarity(truth, found) == 4 / 12


def test_f_of_empty_masks():
    empty, full = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    full[3:6, 3:6] = True
    assert border_similarity(empty, empty) == 1.0
    assert border_similarity(empty, full) == border_similarity(full, empty) == 0.0
    assert border_similarity(full, full) == 1.0


def test_f_forgives_as_many_pixels_as_the_diagonal_says():
    """480 × 854: 8 px."""
    truth = np.zeros((480, 854), bool)
    truth[100:300, 200:500] = True
    assert border_similarity(truth, np.roll(truth, 8, axis=1)) == 1.0
    assert border_similarity(truth, np.roll(truth, 9, axis=1)) < 1.0


def test_statistics_of_frames():
    values = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    found = Statistics.of_frames(values)
    assert found.mean == pytest.approx(0.65)
    assert found.recall == 5 / 8, "0.5 itself is not above"
    # The quarters end at frames 1, 3, 5 (2.75 and 4.5 rounded up), 6 and 8, and share them.
    assert found.decay == pytest.approx(np.mean([1.0, 0.9, 0.8]) - np.mean([0.5, 0.4, 0.3]))
    assert Statistics.of_frames([0.7]) == Statistics(0.7, 1.0, 0.0)


def test_long_objects_decay_by_their_last_quarter():
    values = [1.0] * 300 + [0.0] * 100
    assert Statistics.of_frames(values).decay == pytest.approx(0.99, abs=0.01)


def test_means_are_over_objects_not_sequences():
    def score(sequence, number, value):
        return ObjectScore(sequence, number, Statistics(value, 0, 0), Statistics(value / 2, 0, 0))

    scores = TrackingScores((score("a", 1, 0.9), score("b", 1, 0.3), score("b", 2, 0.0)))
    assert scores.j.mean == pytest.approx(0.4)
    assert scores.f.mean == pytest.approx(0.2)
    assert scores.j_and_f == pytest.approx(0.3)


def test_every_object_is_scored_by_itself():
    truth, found = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    truth[2:8, 2:8], truth[10:16, 10:16] = 1, 2
    found[2:8, 2:8] = 1  # the second object is missed
    scorer = SequenceScorer("seq", 2)
    for _ in range(3):
        scorer.add(truth, found, "masks/seq/00001.png")
    one, two = scorer.scores()
    assert (one.object, one.j.mean, one.f.mean) == (1, 1.0, 1.0)
    assert (two.object, two.j.mean, two.f.mean) == (2, 0.0, 0.0)


def test_masks_that_do_not_fit_are_refused():
    scorer = SequenceScorer("seq", 1)
    truth = np.zeros((8, 10), np.uint8)
    with pytest.raises(DataError, match=r"here\.png holds the id 2, and seq has objects 1 to 1"):
        scorer.add(truth, np.full((8, 10), 2, np.uint8), "here.png")
    with pytest.raises(DataError, match=r"here\.png is 8 × 10 px, and its annotation 10 × 8 px"):
        scorer.add(truth, np.zeros((10, 8), np.uint8), "here.png")


def test_first_and_last_frame_are_not_scored():
    assert list(scored_frames("seq", 5)) == [1, 2, 3]
    with pytest.raises(DataError, match="seq has 2 frames; the first and the last are not scored"):
        scored_frames("seq", 2)
