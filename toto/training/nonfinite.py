"""What is said when a loss or a gradient is not finite: the step, its sources and its samples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from toto.errors import RunError, raised_by_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toto.training.distributed import Ranks
    from toto.training.engine import StreamBatch

__all__ = ["NonFiniteError", "non_finite"]


class NonFiniteError(RunError):
    """A loss or gradient that is NaN or infinite; all ranks raise it, before the step is taken.

    Attributes:
        sources: of the samples in question, counted from 0 as the stream does.
    """

    def __init__(self, text: str, sources: set[int]) -> None:
        super().__init__(text)
        self.sources = sources


def non_finite(
    step: int, micro_batches: Sequence[StreamBatch], losses: Sequence[float], ranks: Ranks
) -> NonFiniteError:
    """The error, the same on all ranks: it names the micro-batches whose loss is not finite.

    Where every loss is finite the gradient is to blame, and all samples of the step are named.

    Args:
        step: counted from 0.
        micro_batches: of this rank.
        losses: one for each.
        ranks: all of them call.
    """
    pairs = list(zip(micro_batches, losses, strict=True))
    bad = [batch for batch, loss in pairs if not math.isfinite(loss)]
    found = ranks.gather((_samples(bad), _samples(micro_batches)))
    blamed = [of_bad for of_bad, _ in found if of_bad[0]]
    what = "loss" if blamed else "gradient"
    named = blamed or [of_all for _, of_all in found]
    ranks_blamed = _ranges({rank for rank, (of_bad, _) in enumerate(found) if of_bad[0]})
    where = f" on rank {ranks_blamed}" if blamed and ranks.world > 1 else ""
    positions = _ranges({p for positions, _ in named for p in positions})
    sources = {s for _, sources in named for s in sources}
    error = NonFiniteError(
        f"step {step}: the {what} is not finite{where}. Samples: positions {positions} of the "
        f"stream, sources {_ranges(sources)} (counted from 0). The weights are still those before "
        "the step. Lower optimizer.lr, lengthen schedule.warmup_steps, or set training.precision "
        "to fp32; if one sample is to blame, look at it",
        sources,
    )
    return raised_by_all(error)


def _samples(batches: Sequence[StreamBatch]) -> tuple[list[int], list[int]]:
    """Their positions in the stream, and their sources."""
    positions = [p for batch in batches for p in batch.position_B.tolist()]
    return positions, [s for batch in batches for s in batch.source_B.tolist()]


def _ranges(found: set[int]) -> str:
    """Integers in short: {3, 4, 5, 9} → "3-5, 9"."""
    runs: list[list[int]] = []
    for number in sorted(found):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
