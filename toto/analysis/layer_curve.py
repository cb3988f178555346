"""Accuracy over depth: one drawing for the report's page and for the file beside the results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator, PercentFormatter

from toto.analysis.panels import INK, MARKERS, SERIES
from toto.evaluation.results import best_by_layer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from toto.evaluation.results import ProbeRow, ProbeScore

__all__ = ["plot_layer_curve"]


def plot_layer_curve(axes: Axes, rows: Sequence[ProbeRow], colors: Mapping[str, str]) -> None:
    """A line a pooling, best over learning rates and decays, with its peak ringed, and chance.

    The band is the Wilson interval of one probe, the bars are the t interval over seeds.

    Args:
        axes: drawn into.
        rows: at least one.
        colors: of the placeholders of `panels` that are not to be drawn as they are.
    """
    for index, (head, best) in enumerate(best_by_layer(rows).items()):
        color = SERIES[index % len(SERIES)]
        _plot_pooling(axes, head, best, colors.get(color, color), MARKERS[index % len(MARKERS)])
    chance = rows[0].chance
    ink = colors.get(INK, INK)
    axes.axhline(chance, color=ink, linestyle=":", linewidth=1.2, label=f"chance {chance:.1%}")
    axes.set(xlabel="layer (0 is the embedding)", ylabel="accuracy", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _plot_pooling(
    axes: Axes, head: str, best: Sequence[ProbeScore], color: str, marker: str
) -> None:
    layers = [score.layer for score in best]
    low, high = [score.low for score in best], [score.high for score in best]
    axes.fill_between(layers, low, high, color=color, alpha=0.18, linewidth=0)
    peak = max(best, key=lambda score: score.accuracy)
    label = f"{head}: best {peak.accuracy:.1%} at layer {peak.layer}"
    accuracy = [score.accuracy for score in best]
    axes.plot(layers, accuracy, color=color, marker=marker, label=label)
    axes.plot(
        peak.layer,
        peak.accuracy,
        color=color,
        marker="o",
        markersize=12,
        fillstyle="none",
        markeredgewidth=1.5,
    )
    for score in best:
        if score.seed_low is not None and score.seed_high is not None:
            axes.vlines(score.layer, score.seed_low, score.seed_high, color=color, linewidth=3)
