"""The figures of a report, as SVG that lives inside an HTML page.

Each panel is one small picture, so that a page can set several beside each other on a wide screen
and below each other on a narrow one without shrinking their text. Colours are names of CSS
variables (`--ink`, `--model`, ...) that the page gives a value for its light and its dark scheme;
text stays text and is set in the page's font.

Matplotlib is imported here, so import this module only where figures are drawn.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from toto.analysis.runs import best_by_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from toto.analysis.runs import Evaluation, SourceLoss, TrainPoint
    from toto.evaluation.results import ProbeRow

__all__ = [
    "Panel",
    "accuracy_by_layer",
    "loss_by_frame",
    "smooth",
    "training_curves",
    "training_loss",
    "validation_loss",
]

# Placeholders that matplotlib can draw with, and the variable that replaces each in the SVG.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = ("#040404", "#050505", "#060606", "#070707")
MODEL, COPY, UNIGRAM, _ = SERIES
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    **{color: f"--series-{index}" for index, color in enumerate(SERIES, start=1)},
}
MARKERS = ("o", "s", "^", "D")

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


def training_loss(lines: Sequence[TrainPoint], unit: str) -> Panel:
    """The training loss against the tokens seen: lightly smoothed, the logged values behind."""

    def draw(axes: Axes) -> None:
        scale, label = _token_axis(lines[-1].tokens)
        tokens = [line.tokens / scale for line in lines]
        loss = np.array([line.loss for line in lines])
        axes.plot(tokens, loss, color=MUTED, linewidth=0.8, alpha=0.7, label="as logged")
        axes.plot(tokens, smooth(loss, len(loss) // 50), color=MODEL, label="smoothed")
        axes.set(xlabel=label, ylabel=f"loss ({unit})")

    return _panel("Training loss, all sources", draw)


def validation_loss(evals: Sequence[Evaluation], source: str, unit: str) -> Panel:
    """The validation loss of a source against the tokens seen, with its baselines as lines."""

    def draw(axes: Axes) -> None:
        scale, label = _token_axis(evals[-1].tokens)
        tokens = [line.tokens / scale for line in evals]
        losses = [line.sources[source].loss for line in evals]
        axes.plot(tokens, losses, color=MODEL, marker="o", label="model")
        last = evals[-1].sources[source]
        if last.copy is not None:
            axes.axhline(last.copy, color=COPY, linestyle="--", label="copy last frame")
        if last.unigram is not None:
            axes.axhline(last.unigram, color=UNIGRAM, linestyle="-.", label="unigram")
        axes.set(xlabel=label, ylabel=f"loss ({unit})")

    return _panel(f"Validation loss, {source}", draw)


def loss_by_frame(loss: SourceLoss, source: str, unit: str) -> Panel:
    """The validation loss of each frame of the sequence, with the baselines' beside it."""

    def draw(axes: Axes) -> None:
        frames = range(1, len(loss.frame_loss) + 1)
        axes.plot(frames, loss.frame_loss, color=MODEL, marker="o", label="model")
        if loss.frame_copy is not None:
            axes.plot(frames, loss.frame_copy, color=COPY, linestyle="--", label="copy last frame")
        if loss.frame_unigram is not None:
            axes.plot(frames, loss.frame_unigram, color=UNIGRAM, linestyle="-.", label="unigram")
        axes.set(xlabel="frame of the sequence", ylabel=f"loss ({unit})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return _panel(f"Loss by frame, {source}", draw)


def accuracy_by_layer(rows: Sequence[ProbeRow]) -> Panel:
    """Accuracy by layer and pooling, best over learning rates, with interval, peak and chance."""

    def draw(axes: Axes) -> None:
        for index, (head, best) in enumerate(best_by_layer(rows).items()):
            color, marker = SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]
            layers = [row.layer for row in best]
            peak = max(best, key=lambda row: row.accuracy)
            label = f"{head}: best {peak.accuracy:.1%} at layer {peak.layer}"
            axes.fill_between(
                layers,
                [row.low for row in best],
                [row.high for row in best],
                color=color,
                alpha=0.18,
                linewidth=0,
            )
            accuracy = [row.accuracy for row in best]
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
        chance = rows[0].chance
        axes.axhline(chance, color=INK, linestyle=":", linewidth=1.2, label=f"chance {chance:.1%}")
        axes.set(xlabel="layer (0 is the embedding)", ylabel="accuracy", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))

    return _panel("Accuracy, best over learning rates", draw, legend_columns=1, size=TALL)


def training_curves(lines: Sequence[TrainPoint]) -> list[Panel]:
    """Learning rate, gradient norm and speed against the tokens seen."""
    curves = [
        ("Learning rate", "learning rate", [line.lr for line in lines]),
        ("Gradient norm before clipping", "norm", [line.grad_norm for line in lines]),
        ("Speed", "thousand visual tokens/s", [line.tokens_per_s / 1000 for line in lines]),
    ]
    scale, label = _token_axis(lines[-1].tokens)
    tokens = [line.tokens / scale for line in lines]

    def drawer(ylabel: str, values: list[float]) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            axes.plot(tokens, values, color=MODEL, linewidth=1.2)
            axes.set(xlabel=label, ylabel=ylabel, ylim=(0, None))

        return draw

    return [
        _panel(title, drawer(ylabel, values), size=FLAT, legend_columns=0)
        for title, ylabel, values in curves
    ]


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


def _token_axis(most: int) -> tuple[float, str]:
    """The unit that tokens are counted in on an axis, and the axis' label."""
    for scale, name in (
        (1e12, "trillions"),
        (1e9, "billions"),
        (1e6, "millions"),
        (1e3, "thousands"),
    ):
        if most >= scale:
            return scale, f"visual tokens seen ({name})"
    return 1.0, "visual tokens seen"


def _panel(
    title: str,
    draw: Callable[[Axes], None],
    *,
    legend_columns: int = 3,
    size: tuple[float, float] = SIZE,
) -> Panel:
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
