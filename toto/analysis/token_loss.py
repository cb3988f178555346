"""The loss at each position of a sequence: where in a video the next token is hard (Figure 10)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toto.tasks.baselines import TokenBaselines

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PositionLosses", "baseline_positions", "mean_by_position"]

NORMAL_QUANTILE_95 = 1.959963984540054  # two-sided


@dataclass(frozen=True)
class PositionLosses:
    """What sequences lose on average at each visual token, raster order, frame after frame.

    Attributes:
        mean_THW: float64; nats a token, or mean squared error of patches.
        margin_THW: half of the 95 % interval of each mean over sequences, by the normal
            distribution; NaN of one sequence.
        sequences: how many.
    """

    mean_THW: Tensor
    margin_THW: Tensor
    sequences: int

    def by_frame(self) -> list[float]:
        """The mean of each frame."""
        means: list[float] = self.mean_THW.mean((1, 2)).tolist()
        return means

    def first_of_frames(self) -> list[float]:
        """The loss at the first token of each frame."""
        firsts: list[float] = self.mean_THW[:, 0, 0].tolist()
        return firsts


def mean_by_position(batches: Iterable[Tensor]) -> PositionLosses:
    """Means over sequences of `losses_BTHW`, in float64, one pass, nothing kept.

    Raises:
        ValueError: no sequence at all.
    """
    count = 0
    for losses_BTHW in batches:
        part_BTHW = losses_BTHW.double().cpu()
        if count == 0:
            mean_THW = torch.zeros_like(part_BTHW[0])
            squares_THW = torch.zeros_like(part_BTHW[0])
        # Chan et al. (1983): the squares are about the running mean, so that nothing cancels.
        size = len(part_BTHW)
        part_mean_THW = part_BTHW.mean(0)
        shift_THW = part_mean_THW - mean_THW
        squares_THW += (part_BTHW - part_mean_THW).square().sum(0)
        squares_THW += shift_THW.square() * (count * size / (count + size))
        count += size
        mean_THW += shift_THW * (size / count)
    if count == 0:
        raise ValueError("a mean needs at least one sequence")
    if count == 1:
        return PositionLosses(mean_THW, torch.full_like(mean_THW, math.nan), 1)
    error_THW = (squares_THW / (count - 1) / count).sqrt()
    return PositionLosses(mean_THW, NORMAL_QUANTILE_95 * error_THW, count)


def baseline_positions(
    codes: list[Tensor], codebook_size: int
) -> tuple[TokenBaselines, dict[str, PositionLosses]]:
    """Fit unigram and copy-the-last-frame to the very codes they are measured on.

    This favours them. Sequences of one frame have no copy.

    Args:
        codes: at least one batch of `codes_BTHW`, of any integer type.
        codebook_size: of their tokenizer.

    Returns:
        What was fitted, and "copy" and "unigram".
    """
    fitted = TokenBaselines.fit((batch.long() for batch in codes), codebook_size)
    names = sorted(fitted.token_losses(codes[0].long()))
    return fitted, {
        name: mean_by_position(fitted.token_losses(batch.long())[name] for batch in codes)
        for name in names
    }
