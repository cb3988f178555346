from __future__ import annotations

import json

import pytest

from toto.evaluation.results import ProbeResults, ProbeRow, wilson_interval


def row(layer, head, lr, accuracy, loss=0.5):
    return ProbeRow(layer, head, lr, accuracy, accuracy / 2, accuracy, loss, 0.1)


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
    assert results.best() == results.rows[1]
    assert results.best("average") == results.rows[2]


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
    folder = tmp_path / "probe"
    results.write(folder, source="digits", step=5)
    results.write(folder, source="digits", step=7)
    lines = (folder / "results.jsonl").read_text().splitlines()
    keys = ["layer", "head", "lr", "accuracy", "low", "high", "loss", "chance"]
    assert [list(json.loads(line)) for line in lines] == [keys] * 4
    assert [ProbeRow(**json.loads(line)) for line in lines] == list(results.rows)
    summary = json.loads((folder / "summary.json").read_text())
    assert ProbeRow(**summary["best"]["average"]) == results.rows[2]
    assert summary["text"] == results.summary()
    assert (summary["source"], summary["step"]) == ("digits", 7)
    assert sorted(path.name for path in folder.iterdir()) == ["results.jsonl", "summary.json"]
