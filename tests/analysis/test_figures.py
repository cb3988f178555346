from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from toto.analysis import figures
from toto.analysis.ngrams import NgramCounter, NgramStatistics, statistics
from toto.analysis.panels import VARIABLES
from toto.errors import RunError
from toto.evaluation.tracking_metrics import ObjectScore, Statistics, TrackingScores
from toto.evaluation.tracking_results import TrackingResults

PAGE = Path(figures.__file__).with_name("page.css")


def of_random_images(seed: int) -> list[NgramStatistics]:
    uniform = np.random.default_rng(seed).random((50, 16))
    codes_BL = (uniform**2 * 20).astype(np.uint16)
    found = []
    for n in (1, 2, 3):
        counter = NgramCounter(n)
        counter.add(codes_BL)
        found.append(statistics(counter.counts(), 20))
    return found


def test_the_colours_are_those_of_the_page() -> None:
    light = PAGE.read_text(encoding="utf-8").partition("@media")[0]
    of_page = dict(re.findall(r"(--[a-z0-9-]+): (#[0-9a-f]{6})", light))
    assert {VARIABLES[name]: color for name, color in figures.LIGHT.items()} == {
        variable: of_page[variable] for variable in VARIABLES.values()
    }


def test_the_line_holds_the_count_of_every_rank() -> None:
    of_label = of_random_images(0)[1]
    line = figures._draw_sorted(Figure().subplots(), 0, of_label)
    ranks, counts = line.get_xdata(), line.get_ydata()
    sorted_counts = of_label.values_M.repeat(of_label.ngrams_M)
    drawn = np.interp(np.arange(1, of_label.distinct + 1), ranks, counts)
    assert drawn.tolist() == sorted_counts.tolist()
    assert line.get_label() == f"{of_label.distinct} of at most 400"


def test_the_figure_grows_with_its_legend_and_is_the_same_each_time(tmp_path: Path) -> None:
    two = {"$x$ <b>": of_random_images(0), "other": of_random_images(1)}
    many = {f"dataset {number}": of_random_images(number) for number in range(6)}
    sizes = []
    for name, series in (("a", two), ("b", two), ("c", many)):
        figures.draw_ngrams(tmp_path / f"{name}.png", series)
        with Image.open(tmp_path / f"{name}.png") as image:
            sizes.append(image.size)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sizes[2][0] == sizes[0][0]
    assert sizes[2][1] > sizes[0][1]


def test_a_figure_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(RunError, match=r"a\.png cannot be written"):
        figures.draw_ngrams(tmp_path / "a.png", {"one": of_random_images(0)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_curve_of_tracking_is_the_same_each_time(
    tmp_path: Path,
) -> None:
    def scores_of(mean: float) -> TrackingScores:
        one = Statistics(mean, 0.0, 0.0)
        return TrackingScores((ObjectScore("seq", 1, one, one),))

    layers = {layer: scores_of(0.1 * layer) for layer in range(3)}
    results = TrackingResults(layers, scores_of(0.15))
    for name in ("a.png", "b.png"):
        figures.draw_tracking(tmp_path / name, results)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 400
