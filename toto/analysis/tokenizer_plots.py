"""The figures of the report of a tokenizer's run.

Matplotlib is imported here, so import this module only where figures are drawn.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import EngFormatter, FuncFormatter, NullFormatter, PercentFormatter

from toto.analysis.panels import (
    INK,
    MARKERS,
    MUTED,
    TALL,
    Panel,
    counting_axis,
    course_of_training,
    draw_panel,
    look,
    smooth,
)
from toto.data.config import TOGETHER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from toto.analysis.tokenizer_runs import TokenizerRecord

__all__ = [
    "code_use_by_rank",
    "codes_in_use",
    "perplexity",
    "shares_by_rank",
    "term",
    "training_curves",
]

STEPS = "optimizer steps"


def term(record: TokenizerRecord, name: str, title: str, label: str) -> Panel:
    """What the task measures against the steps: while training, and on each held-out source.

    Args:
        record: of the run.
        name: of the term in the record.
        title: of the panel.
        label: of the vertical axis, with its unit.
    """

    def draw(axes: Axes) -> None:
        scale = _steps_axis(axes, record)
        logged = [(line.step, line.values[name]) for line in record.train if name in line.values]
        if logged:
            places, values = np.array(logged).T
            axes.plot(places / scale, values, color=MUTED, linewidth=0.8, alpha=0.5)
            smoothed = smooth(values, len(values) // 50)
            axes.plot(places / scale, smoothed, color=MUTED, label="training")
        _draw_sources(axes, record, name, scale)
        axes.set_ylabel(label)

    return draw_panel(title, draw)


def codes_in_use(record: TokenizerRecord) -> Panel:
    """The share of the codes that held-out tokens have, against the steps."""

    def draw(axes: Axes) -> None:
        scale = _steps_axis(axes, record)
        _draw_sources(axes, record, "codebook_use", scale)
        axes.set(ylabel="share of the codebook", ylim=(0, min(axes.get_ylim()[1], 1.03)))
        # As many decimals as the ticks need: few codes of many are in use at the beginning.
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))

    return draw_panel("Codes in use", draw)


def perplexity(record: TokenizerRecord) -> Panel:
    """The perplexity of the codes of held-out pictures, against the steps."""

    def draw(axes: Axes) -> None:
        scale = _steps_axis(axes, record)
        _draw_sources(axes, record, "perplexity", scale)
        axes.set(ylabel="perplexity (codes)", ylim=(0, None))

    return draw_panel("Perplexity of the codes", draw)


def training_curves(record: TokenizerRecord) -> list[Panel]:
    """Learning rate, gradient norm and speed against the steps."""
    scale, label = counting_axis(record.last_step, STEPS)
    return course_of_training(record.train, [line.step / scale for line in record.train], label)


def code_use_by_rank(record: TokenizerRecord) -> Panel:
    """Each code's share of the held-out tokens at the end, the most frequent first, on log axes."""

    def draw(axes: Axes) -> None:
        for source in record.series:
            color, line = _look(record, source)
            ranks, shares = shares_by_rank(record.code_counts[source])
            axes.plot(ranks, shares, color=color, linestyle=line, label=_label(source))
        num_codes = len(record.code_counts[TOGETHER])
        axes.axhline(
            1 / num_codes, color=INK, linestyle=":", linewidth=1.2, label="all codes alike"
        )
        axes.set(xscale="log", yscale="log", xlabel="rank of the code", ylabel="share of tokens")
        axes.set_xlim(0.9, num_codes * 1.1)
        # Whole decades: inside of one decade there would be no tick that is labelled.
        low, high = (math.log10(limit) for limit in axes.get_ylim())
        axes.set_ylim(10 ** math.floor(low), 10 ** math.ceil(high))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())

    return draw_panel("Codes by rank", draw, legend_columns=2, size=TALL)


def _steps_axis(axes: Axes, record: TokenizerRecord) -> float:
    """The same axis for all panels of a run; returns the unit that steps are counted in."""
    scale, label = counting_axis(record.last_step, STEPS)
    axes.set(xlabel=label, xlim=(0, 1.03 * record.last_step / scale))
    return scale


def _draw_sources(axes: Axes, record: TokenizerRecord, name: str, scale: float) -> None:
    """The evaluations of each source; nothing where they do not measure `name`."""
    for index, source in enumerate(record.series):
        points = [
            (line.step / scale, line.sources[source][name])
            for line in record.evals
            if name in line.sources[source]
        ]
        if points:
            color, line = _look(record, source)
            axes.plot(
                *zip(*points, strict=True),
                color=color,
                linestyle=line,
                marker=MARKERS[index % len(MARKERS)],
                label=_label(source),
            )


def shares_by_rank(counts: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rank → share of all tokens, the most frequent code first; codes without a token left out.

    Each different count is a level line from its first to its last rank: no rank is lost.
    """
    counts_V = np.array(counts)
    levels, codes = np.unique(counts_V[counts_V > 0], return_counts=True)
    levels, last = levels[::-1], np.cumsum(codes[::-1])
    ranks = np.stack([last - codes[::-1] + 1, last], axis=1).ravel()
    return ranks, (levels / counts_V.sum()).repeat(2)


def _look(record: TokenizerRecord, source: str) -> tuple[str, str]:
    """Colour and line of a source, the same in every panel."""
    if source == TOGETHER:
        return INK, "--"
    return look(record.series.index(source))


def _label(source: str) -> str:
    return "all together" if source == TOGETHER else source
