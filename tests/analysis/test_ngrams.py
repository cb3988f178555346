from __future__ import annotations

import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toto.analysis.ngrams import MAX_N, NgramCounter, NgramCounts, NgramStatistics, statistics


def images(count: int, tokens: int, codes: int, seed: int = 0) -> np.ndarray:
    """Uneven codes, so that there are rare and frequent n-grams."""
    uniform = np.random.default_rng(seed).random((count, tokens))
    return (uniform**2 * codes).astype(np.uint16)


def counted(n: int, *pieces: np.ndarray) -> NgramCounts:
    counter = NgramCounter(n)
    for piece in pieces:
        counter.add(piece)
    return counter.counts()


def as_dict(counts: NgramCounts) -> dict[tuple[int, ...], int]:
    shifts = [16 * place for place in reversed(range(counts.n))]
    return {
        tuple(key >> shift & 0xFFFF for shift in shifts): count
        for key, count in zip(counts.keys_D.tolist(), counts.counts_D.tolist(), strict=True)
    }


def plainly(n: int, codes_BL: np.ndarray) -> Counter[tuple[int, ...]]:
    return Counter(
        tuple(image[first : first + n])
        for image in codes_BL.tolist()
        for first in range(len(image) - n + 1)
    )


@pytest.mark.parametrize("n", [1, 2, 3])
def test_counts_equal_a_plain_count(n: int) -> None:
    codes_BL = images(40, 30, 12)
    assert as_dict(counted(n, codes_BL)) == plainly(n, codes_BL)


def test_windows_cross_rows_and_never_images() -> None:
    two_BHW = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], np.uint16)
    pairs = as_dict(counted(2, two_BHW.reshape(2, 4)))
    assert (2, 3) in pairs
    assert (4, 5) not in pairs
    assert len(pairs) == 6
    assert set(as_dict(counted(3, two_BHW.reshape(2, 4)))) == {
        (1, 2, 3), (2, 3, 4), (5, 6, 7), (6, 7, 8),
    }  # fmt: skip


@given(
    st.integers(1, MAX_N),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**32)), max_size=7),
    st.sampled_from([1, 2, 40, 2**16]),
)
@settings(max_examples=60, deadline=None)
def test_pieces_of_any_size_count_like_the_whole(
    n: int, sizes: list[tuple[int, int]], codes: int
) -> None:
    pieces = [images(count, 5, codes, seed) for count, seed in sizes]
    counts = counted(n, *pieces)
    whole = np.concatenate([np.empty((0, 5), np.uint16), *pieces])
    assert as_dict(counts) == plainly(n, whole)
    assert np.all(np.diff(counts.keys_D) > 0)


def test_counting_goes_on_after_a_look() -> None:
    counter = NgramCounter(2)
    first, second = images(9, 20, 30, 1), images(30, 20, 30, 2)
    counter.add(first)
    before = counter.counts()
    counter.add(second)
    assert as_dict(counter.counts()) == plainly(2, np.concatenate([first, second]))
    assert as_dict(before) == plainly(2, first)


def test_the_largest_codebook_fits_into_the_keys() -> None:
    top = 2**16 - 1
    codes_BL = np.array([[top, top, top, 0], [0, top, top, 0]], np.uint16)
    assert as_dict(counted(3, codes_BL)) == {
        (top, top, top): 1, (top, top, 0): 2, (0, top, top): 1,
    }  # fmt: skip
    assert statistics(counted(3, codes_BL), 2**16).possible == 2**48
    with pytest.raises(ValueError, match="keys hold 1 to 3 codes"):
        NgramCounter(4)


def test_what_has_no_ngrams_is_refused() -> None:
    with pytest.raises(ValueError, match="images of 2 tokens have no 3-grams"):
        counted(3, np.zeros((5, 2), np.uint16))
    with pytest.raises(ValueError, match="codes are int64; uint16 is expected"):
        counted(1, np.zeros((5, 2), np.int64))
    with pytest.raises(ValueError, match="no 2-gram was counted"):
        statistics(counted(2, np.zeros((0, 9), np.uint16)), 8)


def of_counts(*counts: int, codes: int = 8) -> NgramStatistics:
    return statistics(NgramCounts(1, np.arange(len(counts)), np.array(counts)), codes)


def test_statistics_by_hand() -> None:
    found = of_counts(1, 4, 2, 1)
    assert (found.windows, found.distinct, found.possible, found.most) == (8, 4, 8, 4)
    assert found.entropy_bits == pytest.approx(1.75)
    assert found.entropy_nats == pytest.approx(1.75 * math.log(2))
    assert found.perplexity == pytest.approx(2**1.75)
    assert found.coverage == {1: 0.5, 10: 1.0}
    assert found.values_M.tolist() == [4, 2, 1]
    assert found.ngrams_M.tolist() == [1, 1, 2]


def test_coverage_counts_the_most_frequent_to_the_very_rank() -> None:
    found = of_counts(*[5] * 7, *[2] * 20, 9, *[1] * 100, codes=200)
    total = 35 + 40 + 9 + 100
    assert found.coverage[1] == pytest.approx(9 / total)
    assert found.coverage[10] == pytest.approx((9 + 35 + 2 * 2) / total)
    assert found.coverage[100] == pytest.approx((9 + 35 + 40 + 72) / total)
    assert list(found.coverage) == [1, 10, 100, 1000]
    assert found.coverage[1000] == 1.0


def test_even_codes_have_the_codebooks_perplexity() -> None:
    found = of_counts(*[3] * 8)
    assert found.perplexity == pytest.approx(8)
    assert of_counts(12).perplexity == 1.0


def test_memory_grows_with_the_distinct_ngrams_alone() -> None:
    def peak(count: int, *, kinds: int) -> float:
        """Bytes a distinct 3-gram at worst, of `count` pieces of which `kinds` differ."""
        pieces = [images(200, 258, 2**16, seed) for seed in range(kinds)]
        tracemalloc.start()
        counter = NgramCounter(3)
        for number in range(count):
            counter.add(pieces[number % kinds])
        distinct = len(counter.counts().keys_D)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert distinct > 0.99 * kinds * 200 * 256
        return highest / distinct

    assert peak(10, kinds=10) < 60, "16 bytes a 3-gram, and work space of the last merge"
    assert peak(40, kinds=10) < 60, "what was seen before takes no more room"
