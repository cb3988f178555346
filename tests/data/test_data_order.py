import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toto.data.mixture import Mixture
from toto.data.order import WINDOW_SHARDS, InOrder, Shuffled, permute
from toto.data.philox import philox
from toto.errors import DataError

UNITS_S = np.array([3, 1, 7, 2, 5] * 9)
TOTAL = int(UNITS_S.sum())


def sampler(seed=0, source="a", units_S=UNITS_S):
    return Shuffled(units_S, seed=seed, source=source)


def epoch_of(sampler, epoch):
    numbers = epoch * sampler.num_units + np.arange(sampler.num_units)
    draws = sampler.draw(numbers)
    return list(zip(draws.shard_N.tolist(), draws.unit_N.tolist(), strict=True))


def draw(sampler, epoch, index, attempt=0):
    """One draw: shard, unit, jitter and the crop's place."""
    draws = sampler.draw(np.array([epoch * sampler.num_units + index]), attempt)
    return tuple(values.item() for values in vars(draws).values())


def locate(mixture, positions):
    source, use = mixture.locate(np.array(positions, dtype=np.int64))
    return list(zip(source.tolist(), use.tolist(), strict=True))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers of Random123's kat_vectors
        ("00000000 00000000 00000000 00000000", "00000000 00000000",
         "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
         "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)  # fmt: skip
def test_philox_gives_the_known_answers(counter, key, expected):
    def words(text):
        return tuple(int(word, 16) for word in text.split())

    given_words = tuple(np.array([word, 1], dtype=np.uint64) for word in words(counter))
    drawn = philox(given_words, words(key))
    assert tuple(int(word[0]) for word in drawn) == words(expected)


@given(size=st.integers(1, 300), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size, key):
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_permutation_is_as_likely(size):
    words = np.random.Philox(key=size).random_raw(4000)
    counts = Counter(tuple(permute(np.arange(size), size, int(word))) for word in words)
    expected = len(words) / math.factorial(size)
    chi2 = sum((counts[p] - expected) ** 2 / expected for p in permutations(range(size)))
    freedom = math.factorial(size) - 1
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom)


def test_neighbours_part():
    distances = [int(np.diff(permute(np.array([10, 11]), 1000, key))[0]) for key in range(2000)]
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
        draw(used, epoch, index)
    for epoch, index, attempt in ((0, 1, 0), (7, 80, 0), (5, 3, 2), (10**12, 11, 0)):
        assert draw(used, epoch, index, attempt) == draw(sampler(), epoch, index, attempt)


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
    draws = sampler().draw(np.arange(2000), attempt=1)
    assert len(set(zip(draws.shard_N.tolist(), draws.unit_N.tolist(), strict=True))) == TOTAL
    assert draw(sampler(), 0, 0, 1) != draw(sampler(), 0, 0, 2)


def test_jitter_and_crops_are_even_and_independent():
    one = sampler(units_S=np.array([5000]))
    draws = one.draw(np.arange(4000))
    values = np.stack([draws.jitter_N, draws.crop_y_N, draws.crop_x_N], axis=1)
    assert values.min() >= 0
    assert values.max() < 1
    assert np.allclose(values.mean(0), 0.5, atol=0.02)
    assert np.allclose(np.corrcoef(values.T), np.eye(3), atol=0.06)


def test_the_order_is_pinned():
    # A change here changes the data order of every run, and has to be said in the CHANGELOG.
    assert permute(np.arange(10), 10, 7).tolist() == [3, 0, 2, 6, 9, 1, 5, 4, 8, 7]
    shard, unit, *fractions = draw(sampler(seed=3), 2, 5)
    assert (shard, unit) == (44, 3)
    assert fractions == pytest.approx(
        [0.30621194699779153, 0.20144924684427679, 0.5784693323075771], abs=1e-15
    )


def test_in_order_is_the_order_of_the_shards_cut_at_the_centre():
    drawn = InOrder(np.array([2, 3]))
    units = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    for epoch in (0, 4):
        assert epoch_of(drawn, epoch) == units
    assert draw(drawn, 0, 1) == (0, 1, 0, 0.5, 0.5)


WEIGHTS = st.lists(st.integers(1, 60), min_size=1, max_size=6)


@given(weights=WEIGHTS, scale=st.sampled_from([1, 0.1, 0.25, 3]))
def test_every_prefix_holds_its_shares_within_one(weights, scale):
    mixture = Mixture([weight * scale for weight in weights])
    counts = [0] * len(weights)
    for position, (source, use) in enumerate(locate(mixture, range(2 * mixture.cycle))):
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
        sources = [source for source, _ in locate(mixture, range(step * batch, (step + 1) * batch))]
        for source, share in enumerate(shares):
            count = sources.count(source)
            if batch % mixture.cycle == 0:
                assert count == round(batch * share)
            assert abs(count - batch * share) < 2


def test_far_positions_continue_the_count():
    mixture = Mixture([3, 1])
    uses = {0: [], 1: []}
    for source, use in locate(mixture, range(10**12, 10**12 + 40)):
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


@given(weights=WEIGHTS, positions=st.integers(0, 500))
def test_counts_are_those_of_the_positions(weights, positions):
    mixture = Mixture(weights)
    sources = [source for source, _ in locate(mixture, range(positions))]
    assert mixture.counts(positions) == [sources.count(i) for i in range(len(weights))]


def test_shards_without_units_do_not_change_the_order():
    """Token shards leave them out; a run on them is the run on the raw shards."""
    with_gap, without = np.array([3, 0, 7, 2, 0, 5]), np.array([3, 7, 2, 5])
    names = [0, 2, 3, 5]
    drawn = epoch_of(sampler(units_S=without), 4)
    assert epoch_of(sampler(units_S=with_gap), 4) == [(names[s], unit) for s, unit in drawn]
