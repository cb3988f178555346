from __future__ import annotations

import json

import pytest

from toto.evaluation.tracking_metrics import ObjectScore, Statistics, TrackingScores
from toto.evaluation.tracking_results import HEAD, TrackingResults, cells, figures


def scores_of(j: float, f: float) -> TrackingScores:
    objects = [
        ObjectScore("seq", number, Statistics(j, 0.5, -0.1), Statistics(f, 0.25, 0.2))
        for number in (1, 2)
    ]
    return TrackingScores(tuple(objects))


RESULTS = TrackingResults(
    {0: scores_of(0.2, 0.3), 1: scores_of(0.5, 0.4), 2: scores_of(0.4, 0.5)}, scores_of(0.3, 0.3)
)


def test_the_best_layer_is_that_of_j_and_f_and_the_first_of_equals():
    assert RESULTS.best == 1
    assert "best at layer 1: J&F 45.0% (J 50.0%, F 40.0%); copy first mask: 30.0%" in (
        RESULTS.summary()
    )
    assert "2 objects of 1 sequence." in RESULTS.summary()
    assert "best of 3 on the very sequences it is scored" in RESULTS.summary()
    alone = TrackingResults({4: scores_of(0.5, 0.4)}, scores_of(0.3, 0.3))
    assert "optimistic" not in alone.summary()


def test_the_figures_are_those_of_the_official_table():
    assert dict(zip(HEAD, cells(RESULTS.copies), strict=True)) == {
        "J&F": "0.300", "J mean": "0.300", "J recall": "0.500", "J decay": "-0.100",
        "F mean": "0.300", "F recall": "0.250", "F decay": "0.200",
    }  # fmt: skip
    assert figures(RESULTS.layers[2])["J&F"] == pytest.approx(0.45)


def test_every_object_of_every_layer_is_written(tmp_path):
    RESULTS.write(tmp_path / "r.jsonl", tmp_path / "s.json", {"step": 7})
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert rows[0] == {
        "layer": 0, "sequence": "seq", "object": 1, "j_mean": 0.2, "j_recall": 0.5,
        "j_decay": -0.1, "f_mean": 0.3, "f_recall": 0.25, "f_decay": 0.2,
    }  # fmt: skip
    assert rows[-1]["layer"] == "copy first mask"
    summary = json.loads((tmp_path / "s.json").read_text())
    assert (summary["step"], summary["best_layer"]) == (7, 1)
    assert [row["layer"] for row in summary["layers"]] == [0, 1, 2, "copy first mask"]
