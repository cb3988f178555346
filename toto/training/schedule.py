"""The learning rate as a pure function of the step, so that resuming needs only the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toto.training.config import ScheduleConfig

__all__ = ["WarmupCosine"]


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up to `peak`, then half a cosine down to `final_fraction` of it.

    Attributes:
        config: length of the warm-up and depth of the decay.
        peak: the largest learning rate.
        steps: optimizer steps of the whole run.
    """

    config: ScheduleConfig
    peak: float
    steps: int

    def __call__(self, step: int) -> float:
        """The learning rate of `step`, counted from 0.

        Step `warmup_steps - 1` is the first at the peak; the cosine reaches its end at
        `steps`, just after the last step, and stays there.
        """
        warmup = self.config.warmup_steps
        if step < warmup:
            return self.peak * (step + 1) / warmup
        progress = min((step - warmup) / max(self.steps - warmup, 1), 1.0)
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        final = self.config.final_fraction
        return self.peak * (final + (1.0 - final) * cosine)
