"""Figures that stand alone, as PNG files in the light colours of the report's page.

Matplotlib is imported here, so import this module only where figures are drawn.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter, PercentFormatter

from toto.analysis.layer_curve import plot_layer_curve
from toto.analysis.panels import GRID, INK, MARKERS, MUTED, SERIES, STYLE, look
from toto.files import disk_errors, replacing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

    from toto.analysis.coordinates import Coordinates
    from toto.analysis.ngrams import NgramStatistics
    from toto.analysis.token_loss import PositionLosses
    from toto.evaluation.results import ProbeRow
    from toto.evaluation.tracking_results import TrackingResults

__all__ = [
    "DPI",
    "LIGHT",
    "draw_coordinates",
    "draw_layer_curve",
    "draw_ngrams",
    "draw_token_loss",
    "draw_tracking",
]

LIGHT = {
    INK: "#1a2027",
    MUTED: "#5d6875",
    GRID: "#dde2e8",
    **dict(zip(SERIES, ("#0072b2", "#d55e00", "#009e73", "#a8548a"), strict=True)),
}
"""Of each placeholder of `panels`, the colour that page.css gives it in its light scheme."""

LIGHT_STYLE = {key: LIGHT.get(value, value) for key, value in STYLE.items()}
PANEL = (4.6, 3.6)  # inches, and a line of the legend below it
LEGEND_LINE = 0.2
LEGEND_LETTERS = 150  # that fit beside each other above three panels
WIDE = (9.2, 4.0)
DPI = 150
"""Of every .png file."""


def draw_ngrams(path: Path, series: Mapping[str, Sequence[NgramStatistics]]) -> None:
    """Sorted histograms on log axes: how often the n-gram of each rank occurs, a panel for each n.

    Args:
        path: the .png file.
        series: label → the statistics of each n, the same ones in the same order for all.

    Raises:
        RunError: the disk is full or refuses.
    """
    orders = [one.n for one in next(iter(series.values()))]
    height = PANEL[1] + LEGEND_LINE * len(series)
    with _png(path, (PANEL[0] * len(orders), height)) as figure:
        panels = figure.subplots(1, len(orders), squeeze=False)[0]
        for place, axes in enumerate(panels):
            lines = [
                _draw_sorted(axes, number, of_label[place])
                for number, of_label in enumerate(series.values())
            ]
            axes.set(
                title=f"{orders[place]}-grams", xlabel="rank of the n-gram", ylabel="occurrences"
            )
            _make_logarithmic(axes)
            axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.2), borderaxespad=0.0)
        columns = max(1, LEGEND_LETTERS // (max(map(len, series)) + 8))
        figure.legend(lines, list(series), loc="outside upper left", ncols=columns)


def draw_layer_curve(path: Path, rows: Sequence[ProbeRow], title: str) -> None:
    """What `plot_layer_curve` draws: the paper's Figures 4, 8 and 14, of one model.

    Args:
        path: the .png file.
        rows: at least one.
        title: what was probed on what.

    Raises:
        RunError: the disk is full or refuses.
    """
    lines = len({row.head for row in rows}) + 1
    with _png(path, (PANEL[0] * 1.3, PANEL[1] + LEGEND_LINE * lines)) as figure:
        axes = figure.subplots()
        plot_layer_curve(axes, rows, LIGHT)
        axes.set_title(title)
        figure.legend(loc="outside lower left")


def draw_coordinates(
    path: Path, widths: Sequence[int], series: Mapping[str, Sequence[Coordinates]]
) -> None:
    """Mean |x| of every layer and the logits over the width, a line a step, the last one darkest.

    Args:
        path: the .png file.
        widths: the abscissa.
        series: label, a row of panels each → what was measured.

    Raises:
        RunError: the disk is full or refuses.
    """
    shown = len(next(iter(series.values())))
    inches = (0.62 * PANEL[0] * shown, 0.8 * PANEL[1] * len(series))
    with _png(path, inches) as figure:
        rows = figure.subplots(len(series), shown, squeeze=False, sharex=True, sharey="col")
        for row, (label, measured) in zip(rows, series.items(), strict=True):
            for axes, one in zip(row, measured, strict=True):
                last = len(one.sizes) - 1
                for step, sizes in enumerate(one.sizes):
                    axes.plot(
                        widths,
                        sizes,
                        color=LIGHT[SERIES[0]],
                        alpha=0.25 + 0.75 * step / max(last, 1),
                        marker="o",
                        markersize=3,
                    )
                axes.set(xscale="log", yscale="log", title=f"{one.name}, {label}")
                axes.set_xticks(list(widths), [str(width) for width in widths])
                axes.yaxis.set_major_formatter("{x:g}")
                for axis in (axes.xaxis, axes.yaxis):
                    axis.set_minor_formatter(NullFormatter())
            row[0].set_ylabel("mean |x|")
        for axes in rows[-1]:
            axes.set_xlabel("width")
        # Shared with the rows below; a factor of ten, so that a tick has a number.
        for axes in rows[0]:
            low, high = axes.get_ylim()
            beyond = max(1.0, 10 * low / high) ** 0.5
            axes.set_ylim(low / beyond, high * beyond)


def draw_token_loss(path: Path, series: Mapping[str, PositionLosses], unit: str) -> None:
    """The loss at each position, thin, and the mean of each frame as level lines.

    Args:
        path: the .png file.
        series: label → losses, the model first: of it alone the positions are drawn.
        unit: of the losses.

    Raises:
        RunError: the disk is full or refuses.
    """
    with _png(path, WIDE) as figure:
        axes = figure.subplots()
        model = next(iter(series.values()))
        frames, per_frame = len(model.mean_THW), model.mean_THW[0].numel()
        axes.plot(
            model.mean_THW.flatten().numpy(),
            color=LIGHT[SERIES[0]],
            alpha=0.45,
            linewidth=0.8,
            label="model at each position",
        )
        edges = np.arange(frames + 1) * per_frame
        for number, (label, losses) in enumerate(series.items()):
            color, line = look(number)
            axes.stairs(
                losses.by_frame(),
                edges,
                baseline=None,
                color=LIGHT[color],
                linestyle=line,
                linewidth=1.8,
                label=f"{label}, by frame",
            )
        axes.set(xlabel="visual token of the sequence", ylabel=f"loss ({unit})")
        axes.set(xlim=(0, edges[-1]), ylim=(0, None))
        axes.set_xticks(edges[:: max(1, frames // 8)])
        figure.legend(loc="outside upper left", ncols=1 + len(series))


def draw_tracking(path: Path, results: TrackingResults) -> None:
    """J&F, J and F over the layers, the best one ringed, the copied first mask as a line.

    Args:
        path: the .png file.
        results: of any layers.

    Raises:
        RunError: the disk is full or refuses.
    """
    layers = list(results.layers)
    curves = {
        "J&F": [scores.j_and_f for scores in results.layers.values()],
        "J": [scores.j.mean for scores in results.layers.values()],
        "F": [scores.f.mean for scores in results.layers.values()],
    }
    with _png(path, PANEL) as figure:
        axes = figure.subplots()
        for number, (label, values) in enumerate(curves.items()):
            color, marker = LIGHT[look(number)[0]], MARKERS[number]
            axes.plot(layers, values, color=color, marker=marker, label=label)
        best = results.layers[results.best].j_and_f
        axes.plot(
            results.best,
            best,
            color=LIGHT[SERIES[0]],
            marker="o",
            markersize=12,
            fillstyle="none",
            markeredgewidth=1.5,
        )
        copied = results.copies.j_and_f
        axes.axhline(
            copied, color=LIGHT[INK], linestyle=":", label=f"J&F, first mask copied: {copied:.1%}"
        )
        axes.set(
            title=f"best J&F {best:.1%} at layer {results.best}",
            xlabel="layer (0 is the embedding)",
            ylabel="J, F",
            ylim=(0, 1.1 * max(copied, *(max(values) for values in curves.values()))),
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.2), borderaxespad=0.0, ncols=2)


def _draw_sorted(axes: Axes, number: int, statistics: NgramStatistics) -> Line2D:
    """Each different count as the level line from its first to its last rank: no rank is lost."""
    last_rank_M = np.cumsum(statistics.ngrams_M)
    ranks = np.stack([last_rank_M - statistics.ngrams_M + 1, last_rank_M], axis=1).ravel()
    most = min(statistics.possible, statistics.windows)
    color, style = look(number)
    (line,) = axes.plot(
        ranks,
        statistics.values_M.repeat(2),
        color=LIGHT[color],
        linestyle=style,
        label=f"{statistics.distinct:,} of at most {most:,}",
    )
    return line


def _make_logarithmic(axes: Axes) -> None:
    """Both axes from 1 to the largest value, and to 10 at least, so that two ticks have numbers."""
    right, top = (1.25 * max(largest, 10.0) for largest in axes.dataLim.max)
    axes.set(xscale="log", yscale="log", xlim=(0.8, right), ylim=(0.8, top))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(EngFormatter(sep=""))
        axis.set_minor_formatter(NullFormatter())


@contextmanager
def _png(path: Path, inches: tuple[float, float]) -> Iterator[Figure]:
    """A figure that becomes the file `path` once the block has ended well."""
    with matplotlib.rc_context(LIGHT_STYLE):
        figure = Figure(figsize=inches, dpi=DPI, layout="constrained")
        yield figure
        with disk_errors(path), replacing(path) as unfinished:
            # Nothing of when and with what it was drawn: equal figures are equal files.
            figure.savefig(unfinished, format="png", metadata={"Software": None})
