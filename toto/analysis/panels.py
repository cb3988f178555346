"""Small figures as SVG that lives inside an HTML page, and what is common to those of all runs.

Each panel is one small picture, so that a page can set several beside each other on a wide screen
and below each other on a narrow one without shrinking their text. Colours are names of CSS
variables (`--ink`, `--series-1`, ...) that the page gives a value for its light and its dark
scheme; text stays text and is set in the page's font.

Matplotlib is imported here, so import this module only where figures are drawn.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from toto.analysis.records import TrainPoint

__all__ = ["Panel", "counting_axis", "course_of_training", "draw_panel", "look", "smooth"]

# Placeholders that matplotlib can draw with, and the variable that replaces each in the SVG.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = ("#040404", "#050505", "#060606", "#070707")
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    **{color: f"--series-{index}" for index, color in enumerate(SERIES, start=1)},
}
MARKERS = ("o", "s", "^", "D")
LINES = ("-", "--", ":", "-.")  # a fifth series has the first colour again, and another line

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9.5,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a source may be called "$x$"
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}
SIZE = (4.2, 2.9)  # inches at 72 points: what a telephone shows without shrinking the text
TALL = (4.2, 3.4)
FLAT = (4.2, 2.5)


@dataclass(frozen=True)
class Panel:
    """One picture: its title, and an `<svg>` element without a size of its own."""

    title: str
    svg: str


def look(index: int) -> tuple[str, str]:
    """Colour and line of a series by its number, from 0."""
    return SERIES[index % len(SERIES)], LINES[index // len(SERIES) % len(LINES)]


def course_of_training(
    lines: Sequence[TrainPoint], places: Sequence[float], label: str
) -> list[Panel]:
    """Learning rate, gradient norm, speed, waiting; utilisation and memory where recorded.

    Args:
        lines: the logged steps.
        places: of each on the horizontal axis.
        label: of that axis.
    """
    curves = [
        ("Learning rate", "learning rate", [line.lr for line in lines]),
        ("Gradient norm before clipping", "norm", [line.grad_norm for line in lines]),
        ("Speed", "thousand visual tokens/s", [line.tokens_per_s / 1000 for line in lines]),
        ("Waiting for data", "% of the time", [100 * line.data_wait for line in lines]),
        ("Utilisation (MFU)", "% of the peak", _known(lines, "utilisation", 100)),
        ("Most memory so far", "GB", _known(lines, "memory", 1e-9)),
    ]

    def drawer(ylabel: str, values: list[float]) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            axes.plot(places, values, color=SERIES[0], linewidth=1.2)
            axes.set(xlabel=label, ylabel=ylabel, ylim=(0, None))

        return draw

    return [
        draw_panel(title, drawer(ylabel, values), size=FLAT, legend_columns=0)
        for title, ylabel, values in curves
        if values
    ]


def _known(lines: Sequence[TrainPoint], name: str, scale: float) -> list[float]:
    """A curve with gaps where a line does not have it; empty where none has."""
    values = [getattr(line, name) for line in lines]
    if all(value is None for value in values):
        return []
    return [math.nan if value is None else scale * value for value in values]


def smooth(values: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """The mean of each value and `reach` neighbours on either side, fewer towards the ends.

    Both sides always count alike, so a falling curve is neither delayed nor bent at its ends.
    """
    last = len(values) - 1
    means = []
    for index in range(len(values)):
        near = min(reach, index, last - index)
        means.append(values[index - near : index + near + 1].mean())
    return np.array(means)


def counting_axis(most: int, what: str) -> tuple[float, str]:
    """The unit that `what` is counted in on an axis up to `most`, and the axis' label."""
    for scale, name in (
        (1e12, "trillions"),
        (1e9, "billions"),
        (1e6, "millions"),
        (1e3, "thousands"),
    ):
        if most >= scale:
            return scale, f"{what} ({name})"
    return 1.0, what


def draw_panel(
    title: str,
    draw: Callable[[Axes], None],
    *,
    legend_columns: int = 3,
    size: tuple[float, float] = SIZE,
) -> Panel:
    """Make a panel of what `draw` puts into its axes.

    Args:
        title: of the panel, said by the page; no other panel of a page has it.
        draw: plots, and names the axes.
        legend_columns: of the legend above the axes; 0 for none.
        size: in inches at 72 points.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        if legend_columns:
            axes.legend(
                loc="lower left",
                bbox_to_anchor=(0.0, 1.0),
                ncols=legend_columns,
                borderaxespad=0.3,
                handlelength=1.9,
                handletextpad=0.5,
                columnspacing=1.0,
            )
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return Panel(title, _for_page(file.getvalue()))


def _for_page(svg: str) -> str:
    """Make matplotlib's file an element of a page, which gives it colours, font and size."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r' (width|height)="[0-9.]+pt"', "", svg, count=2)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r' id="[a-z0-9.]+_\d+"', "", svg)  # they repeat from panel to panel
    svg = re.sub(r"font: ([0-9.]+px) [^;\"]+", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]+; ", "", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg
