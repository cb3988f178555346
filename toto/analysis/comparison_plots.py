"""The figures of the page that compares runs: the paper's Figure 2, of any runs.

Matplotlib is imported here, so import this module only where figures are drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from toto.analysis.panels import MARKERS, SIZE, counting_axis, draw_panel, look, smooth

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from toto.analysis.comparison import ComparedRun
    from toto.analysis.panels import Panel

__all__ = ["training_loss", "validation_loss"]

TOKENS_SEEN = "visual tokens seen"
# A curve falls so steeply at first that the rest would be a line: what is above its smoothed loss
# after this share of its tokens is cut off.
STEEP = 0.03
MARGIN = 0.05
LEGEND_LINE = 0.18  # inches of a run in the legend above the axes


def training_loss(runs: Sequence[ComparedRun], unit: str, title: str) -> Panel:
    """The training loss of each run against the tokens seen, smoothed, the logged values behind.

    Args:
        runs: those that have logged something; a run's place in `look` is its `number`.
        unit: of the loss.
        title: of the panel.
    """

    def draw(axes: Axes) -> None:
        scale, label = counting_axis(max(run.train[-1].tokens for run in runs), TOKENS_SEEN)
        highest, lowest = -np.inf, np.inf
        for run in runs:
            color, line = look(run.number)
            tokens = np.array([point.tokens for point in run.train])
            loss = np.array([point.loss for point in run.train])
            smoothed = smooth(loss, len(loss) // 50)
            axes.plot(tokens / scale, loss, color=color, linewidth=0.7, alpha=0.3)
            axes.plot(tokens / scale, smoothed, color=color, linestyle=line, label=run.label)
            highest = max(highest, np.nanmax(smoothed[tokens >= STEEP * tokens[-1]]))
            lowest = min(lowest, np.nanmin(loss))
        room = MARGIN * (highest - lowest)
        if room > 0:
            axes.set_ylim(lowest - room, highest + room)
        axes.set(xlabel=label, ylabel=f"loss ({unit})", xlim=(0, None))

    return draw_panel(title, draw, legend_columns=1, size=_size(runs))


def validation_loss(runs: Sequence[ComparedRun], source: str, unit: str, title: str) -> Panel:
    """The loss of each run on the held-out part of a source, against the tokens seen.

    Args:
        runs: those that were evaluated on it.
        source: its name in their recipes.
        unit: of the loss.
        title: of the panel.
    """

    def draw(axes: Axes) -> None:
        scale, label = counting_axis(max(run.evals[-1].tokens for run in runs), TOKENS_SEEN)
        for run in runs:
            color, line = look(run.number)
            points = [
                (point.tokens / scale, point.sources[source].loss)
                for point in run.evals
                if source in point.sources
            ]
            axes.plot(
                *zip(*points, strict=True),
                color=color,
                linestyle=line,
                marker=MARKERS[run.number % len(MARKERS)],
                label=run.label,
            )
        axes.set(xlabel=label, ylabel=f"loss ({unit})", xlim=(0, None))

    return draw_panel(title, draw, legend_columns=1, size=_size(runs))


def _size(runs: Sequence[ComparedRun]) -> tuple[float, float]:
    """However many runs the legend names, the axes keep their height."""
    width, height = SIZE
    return width, height + LEGEND_LINE * len(runs)
