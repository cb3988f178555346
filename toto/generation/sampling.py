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


def code_probabilities(logits_BV: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """The distribution that codes are drawn from, most probable code first.

    Args:
        logits_BV: logits of all ids. Those of the special ids are left out.
        config: temperature, top-k and top-p.

    Returns:
        Probabilities `BK` (float64, falling, 0 for what a filter removed, each row's sum 1) and the
        codes `BK` (int64, from 0) that they belong to, K = V - NUM_SPECIAL_IDS. Of codes with equal
        logits the lower one stands first.

    Raises:
        RunError: a logit is NaN or infinite.
    """
    logits_BK = logits_BV[:, NUM_SPECIAL_IDS:].double()
    if not logits_BK.isfinite().all():
        raise RunError(
            "the model gives logits that are NaN or infinite, so nothing can be sampled. "
            "Generate from an earlier checkpoint"
        )
    logits_BK, codes_BK = logits_BK.sort(dim=-1, descending=True, stable=True)
    if config.temperature == 0:
        probs_BK = torch.zeros_like(logits_BK)
        probs_BK[:, 0] = 1
        return probs_BK, codes_BK
    # The largest is subtracted before the division: a tiny temperature then gives 0 and -inf.
    probs_BK = ((logits_BK - logits_BK[:, :1]) / config.temperature).softmax(-1)
    if config.top_k:
        probs_BK[:, config.top_k :] = 0
        probs_BK /= probs_BK.sum(-1, keepdim=True)
    if config.top_p < 1:
        mass_before_BK = probs_BK.cumsum(-1) - probs_BK
        probs_BK[mass_before_BK >= config.top_p] = 0
        probs_BK /= probs_BK.sum(-1, keepdim=True)
    return probs_BK, codes_BK


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
    probs_BK, codes_BK = code_probabilities(logits_BV.cpu(), config)
    uniform_B1 = torch.stack(
        [torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators]
    )
    # The first code whose cumulated mass exceeds the uniform number; rounding may leave the last
    # sum below it, so the index stays within the codes that were kept.
    index_B1 = torch.searchsorted(probs_BK.cumsum(-1), uniform_B1, right=True)
    kept_B1 = (probs_BK > 0).sum(-1, keepdim=True)
    codes_B1 = codes_BK.gather(1, torch.minimum(index_B1, kept_B1 - 1))
    return codes_B1[:, 0].to(logits_BV.device)
