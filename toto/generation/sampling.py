"""From logits to codes: temperature, top-k, top-p, and a draw of its own for each sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toto.errors import RunError
from toto.sequence import NUM_SPECIAL_IDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toto.generation.config import SamplingConfig

__all__ = ["code_probabilities", "sample_codes", "sequence_generators"]


def sequence_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator for each sequence, on the CPU, so that no device changes what is drawn."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def code_probabilities(logits_BV: Tensor, config: SamplingConfig) -> Tensor:
    """The distribution that codes are drawn from.

    Args:
        logits_BV: logits of all ids. Those of the special ids are left out.
        config: temperature, top-k and top-p.

    Returns:
        Probabilities `BK` of the codes from 0 (float64, 0 for what a filter removed, each row's sum
        1), K = V - NUM_SPECIAL_IDS. Of codes with equal logits a filter keeps the lower one.

    Raises:
        RunError: a logit is NaN or infinite.
    """
    logits_BK = logits_BV[:, NUM_SPECIAL_IDS:].double()
    if not logits_BK.isfinite().all():
        raise RunError(
            "the model gives logits that are NaN or infinite, so nothing can be sampled. "
            "Generate from an earlier checkpoint"
        )
    if config.temperature == 0:
        first_B1 = logits_BK.argmax(-1, keepdim=True)
        return torch.zeros_like(logits_BK).scatter_(1, first_B1, 1)
    # The largest is subtracted before the division: a tiny temperature then gives 0 and -inf.
    largest_B1 = logits_BK.amax(-1, keepdim=True)
    probs_BK = ((logits_BK - largest_B1) / config.temperature).softmax(-1)
    if config.top_k or config.top_p < 1:  # sorting costs more than all the rest
        probs_BK = _filtered(probs_BK, config)
    return probs_BK


def _filtered(probs_BK: Tensor, config: SamplingConfig) -> Tensor:
    """What top-k and then top-p leave, each row's sum 1 again."""
    falling_BK, codes_BK = probs_BK.sort(dim=-1, descending=True, stable=True)
    if config.top_k:
        falling_BK[:, config.top_k :] = 0
        falling_BK /= falling_BK.sum(-1, keepdim=True)
    if config.top_p < 1:
        mass_before_BK = falling_BK.cumsum(-1) - falling_BK
        falling_BK[mass_before_BK >= config.top_p] = 0
        falling_BK /= falling_BK.sum(-1, keepdim=True)
    return torch.zeros_like(probs_BK).scatter_(1, codes_BK, falling_BK)


def sample_codes(
    logits_BV: Tensor, config: SamplingConfig, generators: Sequence[torch.Generator]
) -> Tensor:
    """Draw the next code of each sequence: int64 `B`, from 0, on the device of the logits.

    Each sequence uses one uniform number of its own generator, so what it draws does not depend on
    the batch around it. A special id cannot be drawn.

    Args:
        logits_BV: logits of all ids.
        config: temperature, top-k and top-p.
        generators: one a sequence, from `sequence_generators`; each moves on by one draw.

    Raises:
        RunError: a logit is NaN or infinite.
    """
    mass_BK = code_probabilities(logits_BV, config).cumsum(-1)
    uniform_B1 = torch.stack(
        [torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators]
    ).to(logits_BV.device)
    # The first code whose cumulated mass exceeds the number's share of all: rounding may leave the
    # sum a little below 1, and a code without mass never exceeds what the one before it reached.
    codes_B1 = torch.searchsorted(mass_BK, uniform_B1 * mass_BK[:, -1:], right=True)
    return codes_B1[:, 0]
