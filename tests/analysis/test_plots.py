from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING

import numpy as np
import pytest
from matplotlib.figure import Figure
from toy_run import train_line, write_lines, write_run

from toto.analysis import figures, panels, plots
from toto.analysis.layer_curve import plot_layer_curve
from toto.analysis.runs import RunRecord, read_run
from toto.evaluation.results import ProbeRow

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    write_run(tmp_path / "run", source="$x$ <b>")
    return read_run(tmp_path / "run")


def all_panels(record: RunRecord) -> list[panels.Panel]:
    return [
        plots.training_loss(record.train, "nats/token"),
        plots.validation_loss(record.evals, "$x$ <b>", "nats/token"),
        plots.loss_by_frame(record.evals[-1].sources["$x$ <b>"], "$x$ <b>", "nats/token"),
        plots.accuracy_by_layer(record.probings[0].rows),
        *plots.training_curves(record.train),
    ]


def texts(panel: panels.Panel) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", panel.svg)


def test_every_axis_has_a_label_with_its_unit(record: RunRecord) -> None:
    loss, validation, frames, accuracy, rate, norm, speed, wait = map(texts, all_panels(record))
    tokens = "visual tokens seen (thousands)"
    for panel in (loss, validation, rate, norm, speed, wait):
        assert tokens in panel
    for panel in (loss, validation, frames):
        assert "loss (nats/token)" in panel
    assert "frame of the sequence" in frames
    assert {"layer (0 is the embedding)", "accuracy"} <= set(accuracy)
    assert "thousand visual tokens/s" in speed
    assert "% of the time" in wait


def test_what_later_runs_record_is_drawn_with_gaps_where_it_is_missing(tmp_path: Path) -> None:
    watched = {"utilisation": 0.25, "memory": 2 * 10**9, "source_loss": {"a": 1.0, "b": None}}
    resumed = [train_line(1), train_line(2) | watched, train_line(3) | watched]
    write_lines(tmp_path / "metrics.jsonl", resumed)
    lines = read_run(tmp_path).train
    *_, wait, utilisation, memory = map(texts, plots.training_curves(lines))
    assert "% of the peak" in utilisation
    assert "GB" in memory
    assert "% of the time" in wait
    by_source = texts(plots.source_losses(lines, "nats/token"))
    assert "a" in by_source
    assert "b" not in by_source, "no step had any of it"


def test_the_legends_name_every_line(record: RunRecord) -> None:
    loss, validation, frames, accuracy = map(texts, all_panels(record)[:4])
    assert {"as logged", "smoothed"} <= set(loss)
    for panel in (validation, frames):
        assert {"model", "copy last frame", "unigram"} <= set(panel)
    assert {
        "attention: best 39.9% at layer 2",
        "average: best 29.9% at layer 2",
        "chance 10.0%",
    } <= set(accuracy)


def test_a_panel_is_an_svg_element_in_the_colours_and_the_font_of_the_page(
    record: RunRecord,
) -> None:
    for panel in all_panels(record):
        root = ElementTree.fromstring(panel.svg.replace("xlink:href", "href"))
        assert root.tag == "svg"
        assert root.attrib["viewBox"].startswith("0 0 302.4 ")
        assert "width" not in root.attrib
        assert not re.findall(r"#[0-9a-f]{6}\b|http|font-family|<style|<metadata", panel.svg)
        assert "var(--ink)" in panel.svg


def test_ids_are_not_shared_between_panels(record: RunRecord) -> None:
    ids = [set(re.findall(r' id="([^"]+)"', panel.svg)) for panel in all_panels(record)]
    assert sum(map(len, ids)) == len(set().union(*ids))
    for panel, own in zip(all_panels(record), ids, strict=True):
        assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', panel.svg)) <= {
            pair for name in own for pair in ((name, ""), ("", name))
        }


def test_figures_are_the_same_twice(record: RunRecord) -> None:
    assert all_panels(record) == all_panels(record)


def test_without_baselines_only_the_model_is_drawn(record: RunRecord) -> None:
    from toto.analysis.runs import Evaluation, SourceLoss

    loss = SourceLoss(0.5, [0.6, 0.4])
    for panel in (
        plots.loss_by_frame(loss, "photos", "squared error"),
        plots.validation_loss([Evaluation(1, 64, {"photos": loss})], "photos", "squared error"),
    ):
        assert "model" in texts(panel)
        assert not {"unigram", "copy last frame"} & set(texts(panel))


def test_smoothing_keeps_straight_lines_and_ends() -> None:
    line = np.linspace(5.0, 2.0, 31)
    assert panels.smooth(line, 4) == pytest.approx(line)
    noisy = np.random.default_rng(0).normal(size=200)
    smoothed = panels.smooth(noisy, 5)
    assert smoothed[100] == pytest.approx(noisy[95:106].mean())
    assert smoothed[[0, -1]] == pytest.approx(noisy[[0, -1]])
    assert np.array_equal(panels.smooth(noisy, 0), noisy)


def test_the_layer_curve_is_a_file_with_a_band_bars_over_seeds_and_a_ring(tmp_path: Path) -> None:
    rows = [
        ProbeRow(
            layer, "average", 0.1, 0.2 + layer / 10 + seed / 50, 0.1, 0.5, None, 0.1, 0.0, seed
        )
        for layer in (0, 1, 2)
        for seed in (0, 1)
    ]
    axes = Figure().subplots()
    plot_layer_curve(axes, rows, {})
    assert axes.lines[0].get_label() == "average: best 41.0% at layer 2"
    band, *bars = axes.collections
    assert band.get_paths()[0].get_extents().bounds == pytest.approx((0, 0.1, 2, 0.4))
    assert len(bars) == 3
    figures.draw_layer_curve(tmp_path / "curve.png", rows, "toy at step 1")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
