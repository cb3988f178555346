"""Which source a position of the stream belongs to: exact ratios, in every stretch of it."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from toto.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Mixture"]

Ints = npt.NDArray[np.int64]

MAX_CYCLE = 100_000
MAX_DENOMINATOR = 1_000_000


class Mixture:
    """Deals the positions 0, 1, 2, … to sources in the ratio of their weights, without chance.

    After any n positions each source has had its share of n to within less than 1, so any n
    consecutive positions hold it to within less than 2. The order repeats after a cycle (10
    positions for 20/10/10/60); whole cycles hold the ratios exactly.

    Args:
        weights: one positive number per source, taken as the nearest fraction with a denominator
            of at most a million.

    Raises:
        DataError: the weights have no common cycle of at most 100,000 positions.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._counts = _smallest_integers(weights)
        self.cycle = sum(self._counts)
        if self.cycle > MAX_CYCLE or 0 in self._counts:
            raise DataError(
                f"weights {', '.join(map(str, weights))}: no {MAX_CYCLE} sequences hold this ratio "
                "exactly. Write fewer digits, or numbers closer to each other"
            )
        self._counts_of = np.array(self._counts, dtype=np.int64)
        self._source_of = _deal(self._counts)
        self._use_of = np.empty(self.cycle, dtype=np.int64)
        for source, count in enumerate(self._counts):
            self._use_of[self._source_of == source] = np.arange(count)

    def locate(self, position_B: Ints) -> tuple[Ints, Ints]:
        """(source, how often it was used before) at each of these positions."""
        turn_B, place_B = np.divmod(position_B, self.cycle)
        source_B = self._source_of[place_B]
        return source_B, turn_B * self._counts_of[source_B] + self._use_of[place_B]

    def counts(self, positions: int) -> list[int]:
        """How many of the first `positions` positions each source has."""
        turns, rest = divmod(positions, self.cycle)
        begun = np.bincount(self._source_of[:rest], minlength=len(self._counts)).tolist()
        return [turns * count + more for count, more in zip(self._counts, begun, strict=True)]


def _smallest_integers(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in the ratio of the weights."""
    exact = [Fraction(weight).limit_denominator(MAX_DENOMINATOR) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    counts = [int(weight * scale) for weight in exact]
    divisor = max(math.gcd(*counts), 1)
    return [count // divisor for count in counts]


def _deal(counts: Sequence[int]) -> Ints:
    """One cycle: the source at each place.

    Use n (from 0) of a source with share w has to come after floor(n / w) places or more, and
    within ceil((n+1) / w). Taking the open use with the earliest deadline meets all of these
    (Baruah et al. 1996, proportionate fairness), which keeps every discrepancy below 1.
    """
    cycle = sum(counts)
    used = [0] * len(counts)
    order = np.empty(cycle, dtype=np.int64)
    for place in range(cycle):
        open_sources = [
            source
            for source, count in enumerate(counts)
            if used[source] * cycle < (place + 1) * count
        ]
        order[place] = source = min(
            open_sources, key=lambda source: -(-(used[source] + 1) * cycle // counts[source])
        )
        used[source] += 1
    return order
