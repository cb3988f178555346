"""What a model must beat: the unigram, and copying the last frame. In its unit, nats a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toto.training.task import Mean

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["TokenBaselines"]


@dataclass(frozen=True)
class TokenBaselines:
    """Two predictors of codes, fitted on training data.

    The unigram knows how often each code occurs. The copy predicts the previous frame's token at
    the same place with probability a, else the unigram; its first frame is the unigram.

    Attributes:
        log_unigram_V: float64 log-probabilities of the codes, counted with one added to each.
        copy_probability: a, of the greatest likelihood.
    """

    log_unigram_V: Tensor
    copy_probability: float

    @classmethod
    def fit(cls, batches: Iterable[Tensor], codebook_size: int) -> TokenBaselines:
        """Fit both on `codes_BTHW` (int64, from 0) in one pass.

        Raises:
            ValueError: no batch at all.
        """
        counts_V = torch.zeros(codebook_size, dtype=torch.int64)
        repeated_V = torch.zeros(codebook_size, dtype=torch.int64)
        pairs = 0
        for codes_BTHW in batches:
            codes = codes_BTHW.cpu()
            now, before = codes[:, 1:], codes[:, :-1]
            counts_V += codes.flatten().bincount(minlength=codebook_size)
            repeated_V += now[now == before].bincount(minlength=codebook_size)
            pairs += now.numel()
        if not counts_V.any():
            raise ValueError("baselines need at least one batch of codes")
        unigram_V = (counts_V + 1).double() / (counts_V + 1).sum()
        return cls(unigram_V.log(), _fit_copy(unigram_V, repeated_V, pairs))

    def losses(self, codes_BTHW: Tensor, *, skip_frames: int = 0) -> dict[str, Mean]:
        """Both losses on `codes_BTHW`, over all tokens and by frame.

        `skip_frames` leaves the first ones out, as a model whose mask reveals them does.

        Returns:
            "unigram" and "copy", scalars; "frame_unigram" and "frame_copy", one entry per frame.
            Without the copy where a sequence is one frame.
        """
        means: dict[str, Mean] = {}
        for name, losses_BTHW in self.token_losses(codes_BTHW).items():
            means |= _means(name, losses_BTHW, skip_frames)
        return means

    def token_losses(self, codes_BTHW: Tensor) -> dict[str, Tensor]:
        """Return the loss of every token, float64 `BTHW`, by name: "unigram" and "copy".

        In sequences of one frame there is nothing to copy, and the unigram is alone.
        """
        log_unigram = self.log_unigram_V.to(codes_BTHW.device)[codes_BTHW]
        if codes_BTHW.shape[1] == 1:
            return {"unigram": -log_unigram}
        log_copy = log_unigram.clone()
        repeats = (codes_BTHW[:, 1:] == codes_BTHW[:, :-1]).double()
        a = self.copy_probability
        log_copy[:, 1:] = (a * repeats + (1 - a) * log_unigram[:, 1:].exp()).log()
        return {"unigram": -log_unigram, "copy": -log_copy}


def _means(name: str, losses_BTHW: Tensor, skip_frames: int) -> dict[str, Mean]:
    total_T = losses_BTHW.sum((0, 2, 3))
    count_T = torch.full_like(total_T, losses_BTHW[:, 0].numel())
    total_T[:skip_frames] = count_T[:skip_frames] = 0
    return {name: Mean(total_T.sum(), count_T.sum()), f"frame_{name}": Mean(total_T, count_T)}


def _fit_copy(unigram_V: Tensor, repeated_V: Tensor, pairs: int) -> float:
    """The a of the greatest likelihood, to the last bits of a double.

    A token v that repeats its predecessor has probability a + (1-a)·u_v, any other (1-a)·u. The
    log-likelihood is concave in a, so its slope has one root, which bisection finds. Where all
    tokens repeat, a stays one observation short of certainty: a loss must stay finite.
    """
    if pairs == 0:
        return 0.0
    changed = pairs - int(repeated_V.sum())

    def slope(a: float) -> float:
        gains_V = repeated_V * (1 - unigram_V) / (a + (1 - a) * unigram_V)
        return float(gains_V.sum()) - changed / (1 - a)

    low, high = 0.0, 1 - 1 / (pairs + 1)
    if slope(low) <= 0:
        return low
    if slope(high) >= 0:
        return high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return low
