"""How often tokens, and runs of two and three of them, occur (the paper's Fig 3, 12 and 13).

An n-gram is n codes that follow each other in the raster order of one image: windows slide over
row ends, never from one image into the next, so an image of L tokens has L-n+1 of them. The paper's
figures show 10,000 validation images of 16 × 16 tokens: at most 2.54 M 3-grams. Read off them:
codes used: dVAE 8,100 of 8,192, VQGAN-1k 450 of 1,024, VQGAN-16k 980 of 16,384; distinct 2-grams
2.37, 0.20 and 0.79 M; distinct 3-grams 2.54 M each.

Counts are exact. Memory grows with the distinct n-grams and not with the images: 16 bytes each, and
50 in all for those of one n while their last runs are merged. ImageNet's 1.28 M images of 256
tokens have 325 M 3-grams; if all of them differed, that would be 16 GB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "COVERAGE_RANKS",
    "DEFINITIONS",
    "MAX_N",
    "NgramCounter",
    "NgramCounts",
    "NgramStatistics",
    "statistics",
]

MAX_N = 3
"""Keys are n codes of 16 bits in an int64."""

CODE_BITS = 16
COVERAGE_RANKS = (1, 10, 100, 1_000, 10_000, 100_000)

DEFINITIONS = {
    "windows": "n-grams counted: L-n+1 for each image of L tokens, in raster order, across row "
    "ends and never across images",
    "distinct": "different n-grams among them",
    "possible": "codebook size to the power of n",
    "most": "how often the most frequent one occurs",
    "entropy_nats": "of the observed frequencies; at most ln(windows), so where nearly every "
    "n-gram occurs once it tells the size of the sample",
    "perplexity": "exp of the entropy in nats",
    "coverage": "share of the windows that the k most frequent n-grams make up, for each k",
}
"""Of the fields of NgramStatistics."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NgramCounts:
    """How often each distinct n-gram occurs.

    Attributes:
        n: codes of one.
        keys_D: of the distinct n-grams, rising; the first code in the highest of n × 16 bits.
        counts_D: of each.
    """

    n: int
    keys_D: Ints
    counts_D: Ints


@dataclass(frozen=True)
class NgramStatistics:
    """The distribution of the n-grams of one n; see DEFINITIONS.

    Attributes:
        values_M: the different counts, falling: the histogram, sorted, in its shortest form.
        ngrams_M: how many n-grams have each of these counts.
    """

    n: int
    windows: int
    distinct: int
    possible: int
    most: int
    entropy_nats: float
    entropy_bits: float
    perplexity: float
    coverage: dict[int, float]
    values_M: Ints
    ngrams_M: Ints


class NgramCounter:
    """Counts n-grams, image by image.

    Pieces are counted by sorting, and merged like the runs of a merge sort: a run is merged into
    the one before it once it has half its length, so that every n-gram is moved a few times only.

    Args:
        n: 1 to MAX_N.
    """

    def __init__(self, n: int) -> None:
        if not 1 <= n <= MAX_N:
            raise ValueError(f"n-grams of n = {n}; keys hold 1 to {MAX_N} codes")
        self.n = n
        self._runs: list[NgramCounts] = []

    def add(self, codes_BL: npt.NDArray[np.uint16]) -> None:
        """Count the n-grams of B images of L tokens each; best many images at once.

        Raises:
            ValueError: codes that are no uint16, or images of fewer than n tokens.
        """
        if codes_BL.dtype != np.uint16:
            raise ValueError(f"codes are {codes_BL.dtype}; uint16 is expected")
        windows = codes_BL.shape[1] - self.n + 1
        if windows < 1:
            raise ValueError(f"images of {codes_BL.shape[1]} tokens have no {self.n}-grams")
        keys = np.zeros((len(codes_BL), windows), np.int64)
        for offset in range(self.n):
            keys <<= CODE_BITS
            keys |= codes_BL[:, offset : offset + windows]
        if not keys.size:
            return
        self._runs.append(NgramCounts(self.n, *np.unique(keys, return_counts=True)))
        while len(self._runs) > 1 and _length(self._runs[-2]) <= 2 * _length(self._runs[-1]):
            self._merge_last()

    def counts(self) -> NgramCounts:
        """Of all images so far."""
        if not self._runs:
            return NgramCounts(self.n, np.empty(0, np.int64), np.empty(0, np.int64))
        while len(self._runs) > 1:
            self._merge_last()
        return self._runs[0]

    def _merge_last(self) -> None:
        last, before = self._runs.pop(), self._runs.pop()
        self._runs.append(_merged(before, last))


def statistics(counts: NgramCounts, codebook_size: int) -> NgramStatistics:
    """The distribution of counted n-grams.

    Raises:
        ValueError: nothing was counted.
    """
    if not len(counts.counts_D):
        raise ValueError(f"no {counts.n}-gram was counted; statistics need at least one")
    rising_M, ngrams_M = np.unique(counts.counts_D, return_counts=True)
    values_M, ngrams_M = rising_M[::-1], ngrams_M[::-1].astype(np.int64)
    windows = int(values_M @ ngrams_M)
    p_M = values_M / windows
    entropy = float(-(ngrams_M * p_M * np.log(p_M)).sum())
    return NgramStatistics(
        n=counts.n,
        windows=windows,
        distinct=len(counts.counts_D),
        possible=codebook_size**counts.n,
        most=int(values_M[0]),
        entropy_nats=entropy,
        entropy_bits=entropy / math.log(2),
        perplexity=math.exp(entropy),
        coverage=_coverage(values_M, ngrams_M, windows),
        values_M=values_M,
        ngrams_M=ngrams_M,
    )


def _coverage(values_M: Ints, ngrams_M: Ints, windows: int) -> dict[int, float]:
    """The share of the k most frequent, for the ranks up to the first that covers all."""
    last_rank_M, covered_M = np.cumsum(ngrams_M), np.cumsum(values_M * ngrams_M)
    shares = {}
    for k in COVERAGE_RANKS:
        place = min(int(np.searchsorted(last_rank_M, k)), len(values_M) - 1)
        missing = max(int(last_rank_M[place]) - k, 0)
        shares[k] = (int(covered_M[place]) - missing * int(values_M[place])) / windows
        if k >= last_rank_M[-1]:
            break
    return shares


def _length(counts: NgramCounts) -> int:
    return len(counts.keys_D)


def _merged(first: NgramCounts, second: NgramCounts) -> NgramCounts:
    """One run of two, whose n-grams rise too."""
    place = np.searchsorted(first.keys_D, second.keys_D)
    is_known = first.keys_D[np.minimum(place, len(first.keys_D) - 1)] == second.keys_D
    counts_D = first.counts_D.copy()
    counts_D[place[is_known]] += second.counts_D[is_known]
    place, is_new = place[~is_known], ~is_known
    return NgramCounts(
        first.n,
        np.insert(first.keys_D, place, second.keys_D[is_new]),
        np.insert(counts_D, place, second.counts_D[is_new]),
    )
