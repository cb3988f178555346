from __future__ import annotations

import json
import math

import numpy as np
import pytest

from toto.evaluation.results import (
    T_QUANTILES_95,
    ProbeResults,
    ProbeRow,
    ProbeScore,
    best_by_layer,
    scores,
    t_interval,
    wilson_interval,
)


def row(layer, head, lr, accuracy, loss=0.5, weight_decay=0.0, seed=0):
    low = accuracy / 2
    return ProbeRow(layer, head, lr, accuracy, low, accuracy, loss, 0.1, weight_decay, seed)


@pytest.fixture
def results():
    rows = (
        row(0, "average", 1e-3, 0.2),
        row(0, "attention", 1e-3, 0.4),
        row(1, "average", 1e-3, 0.3),
        row(1, "attention", 1e-3, 0.4, loss=None),
    )
    return ProbeResults(rows, train_samples=700, validation_samples=200, epochs=20)


# Newcombe (1998), Table I, the score method without continuity correction.
@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_against_published_values(hits, count, low, high):
    assert wilson_interval(hits, count) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_stays_within_0_and_1():
    low, high = wilson_interval(20, 20)
    assert high == 1.0
    assert low == pytest.approx(1 - 0.1611, abs=5e-5)


def test_best_is_the_first_of_the_most_accurate(results):
    assert results.best() == results.scores()[1]
    assert results.best("average") == results.scores()[2]


def test_summary_names_the_best_layer_and_owns_the_choice(results):
    summary = results.summary()
    assert "average: best at layer 1 (lr 0.001): 30.0%" in summary
    assert "attention: best at layer 0" in summary
    assert "chance 10.0%" in summary
    assert "200 validation samples" in summary
    assert "the best of 2 on the validation samples" in summary


def test_a_single_probe_was_not_chosen():
    lone = ProbeResults((row(0, "average", 1e-3, 0.2),), 7, 7, 1)
    assert "the best of" not in lone.summary()


def test_files(results, tmp_path):
    folder = tmp_path
    results.write(
        folder, evaluation="probe", source="digits", step=7, protocol={"epochs": 20}, conditions={}
    )
    lines = (folder / "results.jsonl").read_text().splitlines()
    keys = ["layer", "head", "lr", "accuracy", "low", "high", "loss", "chance"]
    keys += ["weight_decay", "seed"]
    assert [list(json.loads(line)) for line in lines] == [keys] * 4
    assert [ProbeRow(**json.loads(line)) for line in lines] == list(results.rows)
    summary = json.loads((folder / "summary.json").read_text())
    assert ProbeScore(**summary["best"]["average"]) == results.scores()[2]
    assert summary["text"] == results.summary()
    assert (summary["evaluation"], summary["source"], summary["step"]) == ("probe", "digits", 7)
    assert summary["protocol"] == {"epochs": 20}
    assert sorted(path.name for path in folder.iterdir()) == ["results.jsonl", "summary.json"]


# The 95 % interval of 4, 5, 9 is 6 ± 4.3027 · 2.6458 / √3 by any table of t.
def test_t_interval_by_hand():
    assert t_interval([0.4, 0.5, 0.9]) == pytest.approx((0.0, 1.0))
    assert t_interval([0.54, 0.55, 0.59]) == pytest.approx((0.56 - 0.0657251, 0.56 + 0.0657251))
    assert t_interval([0.5] * 31) == (0.5, 0.5)


def test_quantiles_of_t_hold_95_percent():
    for freedom, quantile in enumerate(T_QUANTILES_95, start=1):
        x = np.linspace(-quantile, quantile, 200_001)
        density = np.exp(-(freedom + 1) / 2 * np.log1p(x**2 / freedom))
        scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
        inside = np.trapezoid(density, x) * math.exp(scale) / math.sqrt(freedom * math.pi)
        assert inside == pytest.approx(0.95, abs=1e-5)


def test_scores_are_means_over_seeds_with_both_intervals():
    rows = [
        row(2, "average", 0.1, value, seed=seed) for seed, value in enumerate((0.54, 0.55, 0.59))
    ]
    rows.insert(1, row(2, "average", 0.1, 0.7, weight_decay=0.1))
    seeded, lone = scores(rows)
    assert (seeded.accuracy, seeded.seeds) == (pytest.approx(0.56), 3)
    assert (seeded.low, seeded.high) == pytest.approx((0.28, 0.56))
    assert (seeded.seed_low, seeded.seed_high) == pytest.approx((0.4942749, 0.6257251))
    assert seeded.seed_text() == "49.4% to 62.6% over 3 seeds"
    assert (lone.seeds, lone.seed_low, lone.seed_text()) == (1, None, "")


def test_the_best_is_that_of_the_mean_and_its_interval_is_told():
    rows = [row(1, "average", 0.1, value, seed=seed) for seed, value in enumerate((0.5, 0.6))]
    rows += [row(2, "average", 0.1, value, seed=seed) for seed, value in enumerate((0.3, 0.7))]
    results = ProbeResults(tuple(rows), 7, 7, 1)
    assert results.best().layer == 1
    assert "95 % interval 27.5% to 55.0%; 0.0% to 100.0% over 2 seeds" in results.summary()
    assert "order of samples is that of data_seed" in results.summary()


def test_best_by_layer_takes_the_best_learning_rate_and_of_equals_the_first():
    rows = [
        row(1, "average", 0.1, 0.4),
        row(0, "average", 0.1, 0.2),
        row(0, "average", 0.2, 0.3),
        row(1, "average", 0.2, 0.4),
        row(0, "attention", 0.1, 0.5),
    ]
    all_scores = scores(rows)
    assert best_by_layer(rows) == {
        "average": [all_scores[2], all_scores[0]],
        "attention": [all_scores[4]],
    }
