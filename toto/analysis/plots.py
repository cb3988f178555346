"""The figures of the report of a next-token run.

Matplotlib is imported here, so import this module only where figures are drawn.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from toto.analysis.layer_curve import plot_layer_curve
from toto.analysis.panels import (
    MUTED,
    SERIES,
    TALL,
    Panel,
    counting_axis,
    course_of_training,
    draw_panel,
    look,
    smooth,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from toto.analysis.records import TrainPoint
    from toto.analysis.runs import Evaluation, SourceLoss
    from toto.evaluation.results import ProbeRow

__all__ = [
    "accuracy_by_layer",
    "loss_by_frame",
    "source_losses",
    "training_curves",
    "training_loss",
    "validation_loss",
]

MODEL, COPY, UNIGRAM, _ = SERIES
TOKENS_SEEN = "visual tokens seen"


def training_loss(lines: Sequence[TrainPoint], unit: str) -> Panel:
    """The training loss against the tokens seen: lightly smoothed, the logged values behind."""

    def draw(axes: Axes) -> None:
        scale, label = counting_axis(lines[-1].tokens, TOKENS_SEEN)
        tokens = [line.tokens / scale for line in lines]
        loss = np.array([line.loss for line in lines])
        axes.plot(tokens, loss, color=MUTED, linewidth=0.8, alpha=0.7, label="as logged")
        axes.plot(tokens, smooth(loss, len(loss) // 50), color=MODEL, label="smoothed")
        axes.set(xlabel=label, ylabel=f"loss ({unit})")

    return draw_panel("Training loss, all sources", draw)


def source_losses(lines: Sequence[TrainPoint], unit: str) -> Panel:
    """The training loss of each source against the tokens seen, smoothed over the logged steps."""

    def draw(axes: Axes) -> None:
        scale, label = counting_axis(lines[-1].tokens, TOKENS_SEEN)
        for index, source in enumerate(lines[-1].source_loss):
            points = [
                (line.tokens / scale, line.source_loss[source])
                for line in lines
                if not math.isnan(line.source_loss.get(source, math.nan))
            ]
            if points:
                tokens, loss = np.array(points).T
                color, line_style = look(index)
                smoothed = smooth(loss, len(loss) // 50)
                axes.plot(tokens, smoothed, color=color, linestyle=line_style, label=source)
        axes.set(xlabel=label, ylabel=f"loss ({unit})")

    return draw_panel("Training loss by source, smoothed", draw)


def validation_loss(evals: Sequence[Evaluation], source: str, unit: str) -> Panel:
    """The validation loss of a source against the tokens seen, with its baselines as lines."""

    def draw(axes: Axes) -> None:
        scale, label = counting_axis(evals[-1].tokens, TOKENS_SEEN)
        tokens = [line.tokens / scale for line in evals]
        losses = [line.sources[source].loss for line in evals]
        axes.plot(tokens, losses, color=MODEL, marker="o", label="model")
        last = evals[-1].sources[source]
        if last.copy is not None:
            axes.axhline(last.copy, color=COPY, linestyle="--", label="copy last frame")
        if last.unigram is not None:
            axes.axhline(last.unigram, color=UNIGRAM, linestyle="-.", label="unigram")
        axes.set(xlabel=label, ylabel=f"loss ({unit})")

    return draw_panel(f"Validation loss, {source}", draw)


def loss_by_frame(loss: SourceLoss, source: str, unit: str) -> Panel:
    """The validation loss of each frame of the sequence, with the baselines' beside it."""

    def draw(axes: Axes) -> None:
        assert loss.frame_loss is not None, "the loss of a class is not told apart by frames"
        frames = range(1, len(loss.frame_loss) + 1)
        axes.plot(frames, loss.frame_loss, color=MODEL, marker="o", label="model")
        if loss.frame_copy is not None:
            axes.plot(frames, loss.frame_copy, color=COPY, linestyle="--", label="copy last frame")
        if loss.frame_unigram is not None:
            axes.plot(frames, loss.frame_unigram, color=UNIGRAM, linestyle="-.", label="unigram")
        axes.set(xlabel="frame of the sequence", ylabel=f"loss ({unit})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))

    return draw_panel(f"Loss by frame, {source}", draw)


def accuracy_by_layer(rows: Sequence[ProbeRow]) -> Panel:
    """What `plot_layer_curve` draws."""
    title = "Accuracy, best over learning rates and decays"
    return draw_panel(
        title, lambda axes: plot_layer_curve(axes, rows, {}), legend_columns=1, size=TALL
    )


def training_curves(lines: Sequence[TrainPoint]) -> list[Panel]:
    """What `course_of_training` draws, against the tokens seen."""
    scale, label = counting_axis(lines[-1].tokens, TOKENS_SEEN)
    return course_of_training(lines, [line.tokens / scale for line in lines], label)
