import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toto.data.mixture import Mixture
from toto.data.order import WINDOW_SHARDS, InOrder, Shuffled, permute
from toto.errors import DataError

UNITS_S = np.array([3, 1, 7, 2, 5] * 9)
TOTAL = int(UNITS_S.sum())


def sampler(seed=0, source="a", units_S=UNITS_S):
    return Shuffled(units_S, seed=seed, source=source)


def epoch_of(sampler, epoch):
    draws = [sampler.draw(epoch, index, 0) for index in range(sampler.num_units)]
    return [(draw.shard, draw.unit) for draw in draws]


@given(size=st.integers(1, 300), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size, key):
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_permutation_is_as_likely(size):
    words = np.random.Philox(key=size).random_raw(4000)
    counts = Counter(tuple(permute(i, size, int(word)) for i in range(size)) for word in words)
    expected = len(words) / math.factorial(size)
    chi2 = sum((counts[p] - expected) ** 2 / expected for p in permutations(range(size)))
    freedom = math.factorial(size) - 1
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom)


def test_neighbours_part():
    distances = [permute(10, 1000, key) - permute(11, 1000, key) for key in range(2000)]
    assert Counter(distances).most_common(1)[0][1] < 20


@pytest.mark.parametrize("epoch", [0, 1, 10**9])
def test_every_unit_comes_once_an_epoch(epoch):
    every = {(shard, unit) for shard in range(45) for unit in range(UNITS_S[shard])}
    drawn = epoch_of(sampler(), epoch)
    assert len(drawn) == len(every) == TOTAL
    assert set(drawn) == every


def test_epochs_seeds_and_sources_have_orders_of_their_own():
    orders = [
        epoch_of(sampler(), 0),
        epoch_of(sampler(), 1),
        epoch_of(sampler(seed=1), 0),
        epoch_of(sampler(source="b"), 0),
        epoch_of(InOrder(UNITS_S), 0),
    ]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert sum(a == b for a, b in zip(one, other, strict=True)) < TOTAL / 10


def test_a_draw_depends_on_nothing_drawn_before():
    used = sampler()
    for epoch, index in ((5, 3), (0, 1), (7, 9), (5, 4), (0, 0)):
        used.draw(epoch, index, 0)
    for epoch, index, attempt in ((0, 1, 0), (7, 80, 0), (5, 3, 2), (10**12, 11, 0)):
        assert used.draw(epoch, index, attempt) == sampler().draw(epoch, index, attempt)


def test_a_window_of_shards_is_finished_before_the_next_begins():
    shards = [shard for shard, _ in epoch_of(sampler(), 3)]
    first = list(dict.fromkeys(shards))
    for begin in range(0, 45, WINDOW_SHARDS):
        window = set(first[begin : begin + WINDOW_SHARDS])
        places = [place for place, shard in enumerate(shards) if shard in window]
        assert places == list(range(places[0], places[0] + sum(UNITS_S[list(window)])))


def test_shards_of_a_window_are_mixed():
    shards = [shard for shard, _ in epoch_of(sampler(units_S=np.full(4, 200)), 0)]
    for begin in range(0, 800, 80):
        assert set(shards[begin : begin + 80]) == {0, 1, 2, 3}


def test_replacements_differ_by_attempt_and_are_drawn_from_all():
    drawn = [sampler().draw(0, index, 1) for index in range(2000)]
    units = Counter((draw.shard, draw.unit) for draw in drawn)
    assert len(units) == TOTAL
    assert sampler().draw(0, 0, 1) != sampler().draw(0, 0, 2)


def test_jitter_and_crops_are_even_and_independent():
    one = sampler(units_S=np.array([5000]))
    draws = [one.draw(0, index, 0) for index in range(4000)]
    values = np.array([[draw.jitter, draw.crop_y, draw.crop_x] for draw in draws])
    assert values.min() >= 0
    assert values.max() < 1
    assert np.allclose(values.mean(0), 0.5, atol=0.02)
    assert np.allclose(np.corrcoef(values.T), np.eye(3), atol=0.06)


def test_the_order_is_pinned():
    # A change here changes the data order of every run, and has to be said in the CHANGELOG.
    assert [permute(i, 10, 7) for i in range(10)] == [3, 0, 2, 6, 9, 1, 5, 4, 8, 7]
    draw = sampler(seed=3).draw(2, 5, 0)
    assert (draw.shard, draw.unit) == (42, 6)
    assert (draw.jitter, draw.crop_y, draw.crop_x) == pytest.approx(
        (0.7385607986978812, 0.4610758305765561, 0.6277663865145322), abs=1e-15
    )


def test_in_order_is_the_order_of_the_shards_cut_at_the_centre():
    drawn = InOrder(np.array([2, 3]))
    units = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    for epoch in (0, 4):
        assert epoch_of(drawn, epoch) == units
    draw = drawn.draw(0, 1, 0)
    assert (draw.jitter, draw.crop_y, draw.crop_x) == (0, 0.5, 0.5)


WEIGHTS = st.lists(st.integers(1, 60), min_size=1, max_size=6)


@given(weights=WEIGHTS, scale=st.sampled_from([1, 0.1, 0.25, 3]))
def test_every_prefix_holds_its_shares_within_one(weights, scale):
    mixture = Mixture([weight * scale for weight in weights])
    counts = [0] * len(weights)
    for position in range(2 * mixture.cycle):
        source, use = mixture.locate(position)
        assert use == counts[source]
        counts[source] += 1
        for weight, count in zip(weights, counts, strict=True):
            assert abs(count * sum(weights) - (position + 1) * weight) < sum(weights)


@pytest.mark.parametrize("batch", [10, 20, 64, 256, 1000])
def test_every_batch_of_the_papers_mixture_holds_its_shares(batch):
    shares = [0.2, 0.1, 0.1, 0.6]
    mixture = Mixture(shares)
    assert mixture.cycle == 10
    for step in (0, 1, 2, 10**9):
        sources = [mixture.locate(step * batch + place)[0] for place in range(batch)]
        for source, share in enumerate(shares):
            count = sources.count(source)
            if batch % mixture.cycle == 0:
                assert count == round(batch * share)
            assert abs(count - batch * share) < 2


def test_far_positions_continue_the_count():
    mixture = Mixture([3, 1])
    uses = {0: [], 1: []}
    for position in range(10**12, 10**12 + 40):
        source, use = mixture.locate(position)
        uses[source].append(use)
    assert uses[0] == list(range(3 * 10**12 // 4, 3 * 10**12 // 4 + 30))
    assert uses[1] == list(range(10**12 // 4, 10**12 // 4 + 10))


@pytest.mark.parametrize("weights", [[0.1234567, 1], [1e-9, 1], [1e-9], [1, 1_000_000]])
def test_weights_without_a_short_cycle_are_refused(weights):
    with pytest.raises(DataError, match="Write fewer digits"):
        Mixture(weights)


def test_weights_with_rounding_errors_are_taken_as_meant():
    assert Mixture([0.1 * 3, 0.1]).cycle == 4
    assert Mixture([1 / 3, 2 / 3]).cycle == 3
