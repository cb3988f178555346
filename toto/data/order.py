"""The order of one source's units: a pure function of (seed, source, epoch, index).

An epoch shuffles the shards, and then the units inside each window of consecutive shards. Memory
grows with shards, never with samples: inside a window the permutation is computed, not stored.
Randomness is Philox (Salmon et al. 2011), a counter-based generator; only its raw words are used,
which NumPy keeps the same in all versions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from toto.data.transforms import CENTRE

__all__ = ["Draw", "InOrder", "Sampler", "Shuffled", "permute"]

WINDOW_SHARDS = 16
MAX_ATTEMPTS = 8
ROUNDS = 24

_WORD = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
# The counter of an epoch's order stands where a draw's attempt stands, and is none of them.
_ORDER = _WORD


@dataclass(frozen=True)
class Draw:
    """One unit and how it is cut: `jitter`, `crop_y` and `crop_x` are from 0 to below 1."""

    shard: int
    unit: int
    jitter: float
    crop_y: float
    crop_x: float


class Sampler(ABC):
    """How the units of one source follow each other.

    Args:
        units_S: int64, the number of units in each shard.
    """

    attempts: int
    """How many draws there are for one index, should units turn out undecodable."""

    def __init__(self, units_S: npt.NDArray[np.int64]) -> None:
        self._ends_S = np.cumsum(units_S)
        self.num_units = int(self._ends_S[-1])

    @abstractmethod
    def draw(self, epoch: int, index: int, attempt: int) -> Draw:
        """The unit at `index` (0 to num_units-1) of an epoch; `attempt` 1 and on replace it."""


class InOrder(Sampler):
    """For evaluation: units as they stand, clips at the start of their slot, centre crops."""

    attempts = 1

    def draw(self, epoch: int, index: int, attempt: int) -> Draw:
        """The unit at `index`, in every epoch."""
        shard, unit = _place(self._ends_S, index)
        return Draw(shard, unit, jitter=0.0, crop_y=CENTRE, crop_x=CENTRE)


class Shuffled(Sampler):
    """For training: every unit once an epoch, each epoch in another order, with random crops.

    A unit that cannot be decoded is replaced by one drawn from all units, keyed on the attempt.

    Args:
        units_S: int64, the number of units in each shard.
        seed: of the run.
        source: name of the source.
    """

    attempts = MAX_ATTEMPTS

    def __init__(self, units_S: npt.NDArray[np.int64], *, seed: int, source: str) -> None:
        super().__init__(units_S)
        digest = blake2b(source.encode(), digest_size=8).digest()
        self._key = np.array([seed & _WORD, int.from_bytes(digest, "little")], dtype=np.uint64)
        self._units_S = units_S
        self._orders: dict[int, _EpochOrder] = {}

    def draw(self, epoch: int, index: int, attempt: int) -> Draw:
        """The unit at `index` of the epoch's order, or a replacement."""
        replacement, jitter, crop_y, crop_x = self._words(4, attempt, index, epoch)
        if attempt == 0:
            shard, unit = self._order(epoch).locate(index)
        else:
            shard, unit = _place(self._ends_S, replacement * self.num_units >> 64)
        return Draw(shard, unit, _fraction(jitter), _fraction(crop_y), _fraction(crop_x))

    def _words(self, count: int, *counter: int) -> list[int]:
        """Random 64-bit words that only the key and these three words of the counter decide."""
        counters = np.array([0, *counter], dtype=np.uint64)
        words = np.random.Philox(counter=counters, key=self._key).random_raw(count)
        return [int(word) for word in words]

    def _order(self, epoch: int) -> _EpochOrder:
        """Kept for the last two epochs, which alternate while a batch goes from one to the next."""
        if epoch not in self._orders:
            words = self._words(len(self._units_S) + 1, _ORDER, 0, epoch)
            if len(self._orders) == 2:
                del self._orders[max(self._orders, key=lambda kept: abs(kept - epoch))]
            self._orders[epoch] = _EpochOrder(self._units_S, words)
        return self._orders[epoch]


class _EpochOrder:
    """Shuffled shards, cut into windows, and a permutation inside each window.

    Args:
        units_S: int64, the number of units in each shard.
        words: S random words to shuffle the shards by, and one to permute by.
    """

    def __init__(self, units_S: npt.NDArray[np.int64], words: list[int]) -> None:
        self._key = words[-1]
        self._shards_S = np.argsort(np.array(words[:-1], dtype=np.uint64), kind="stable")
        self._ends_S = np.cumsum(units_S[self._shards_S])

    def locate(self, index: int) -> tuple[int, int]:
        """(shard, unit inside it) at `index` of the epoch."""
        window = _place(self._ends_S, index)[0] // WINDOW_SHARDS
        first = window * WINDOW_SHARDS
        begin = int(self._ends_S[first - 1]) if first else 0
        end = int(self._ends_S[min(first + WINDOW_SHARDS, len(self._ends_S)) - 1])
        key = _mix(self._key + window * _GOLDEN)
        place = begin + permute(index - begin, end - begin, key)
        shard, unit = _place(self._ends_S, place)
        return int(self._shards_S[shard]), unit


def permute(index: int, size: int, key: int) -> int:
    """Where `index` goes in the pseudorandom permutation of 0 to size-1 that `key` names.

    A swap-or-not shuffle (Hoang, Morris and Rogaway 2012): each round pairs every x with k - x and
    swaps the two or not by a hash of the pair. It permutes any size as it is, in 24 rounds.
    """
    for number in range(ROUNDS):
        round_key = _mix(key + number * _GOLDEN)
        partner = (round_key - index) % size
        if _mix(max(index, partner) ^ round_key) >> 63:
            index = partner
    return index


def _place(ends_S: npt.NDArray[np.int64], index: int) -> tuple[int, int]:
    """The shard that holds `index`, where the shards end at `ends_S`, and the place inside it."""
    shard = int(np.searchsorted(ends_S, index, side="right"))
    return shard, index - (int(ends_S[shard - 1]) if shard else 0)


def _mix(word: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a hash of 64 bits."""
    word &= _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


def _fraction(word: int) -> float:
    return (word >> 11) * 2.0**-53
