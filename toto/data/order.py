"""The order of one source's units: a pure function of (seed, source, epoch, index).

An epoch shuffles the shards, and then the units inside each window of consecutive shards. Memory
grows with shards, never with samples: inside a window the permutation is computed, not stored. All
is computed for many indices at once; an index costs less than a microsecond then.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from toto.data.philox import philox

if TYPE_CHECKING:
    from toto.data.philox import Words

__all__ = ["CENTRE", "Draws", "InOrder", "Sampler", "Shuffled", "permute"]

CENTRE = 0.5
"""The place of a crop in the middle."""
WINDOW_SHARDS = 16
MAX_ATTEMPTS = 8
ROUNDS = 24
PIECE = 1024

Ints = npt.NDArray[np.int64]
Fractions = npt.NDArray[np.float64]

_WORD = 2**64 - 1
_WORD32 = 2**32 - 1
_GOLDEN = 0x9E3779B97F4A7C15
# An epoch's order has the counter of an attempt that no draw makes.
_ORDER = _WORD32


@dataclass(frozen=True)
class Draws:
    """N units and how each is cut.

    Attributes:
        shard_N: int64.
        unit_N: int64, inside its shard.
        jitter_N: from 0 to below 1, as are both crops.
        crop_y_N: from the top.
        crop_x_N: from the left.
    """

    shard_N: Ints
    unit_N: Ints
    jitter_N: Fractions
    crop_y_N: Fractions
    crop_x_N: Fractions


class Sampler(ABC):
    """How the units of one source follow each other.

    Args:
        units_S: int64, the number of units in each shard.
    """

    attempts: int
    """How many draws there are for one index, should units turn out undecodable."""

    def __init__(self, units_S: Ints) -> None:
        self._ends_S = np.cumsum(units_S)
        self.num_units = int(self._ends_S[-1])

    @abstractmethod
    def draw(self, numbers_N: Ints, attempt: int = 0) -> Draws:
        """The units at these places of the endless order, epoch after epoch.

        Args:
            numbers_N: epoch · num_units + index in the epoch, each from 0.
            attempt: 1 and on replace the unit at a place by another one.
        """

    @abstractmethod
    def upcoming(self, number: int) -> list[int]:
        """The shards to have at hand at this place of the order, the most urgent first."""


class InOrder(Sampler):
    """For evaluation: units as they stand, clips at the start of their slot, centre crops."""

    attempts = 1

    def draw(self, numbers_N: Ints, attempt: int = 0) -> Draws:
        """The units at these places, in every epoch alike."""
        shard_N, unit_N = _place(self._ends_S, numbers_N % self.num_units)
        centre_N = np.full(len(numbers_N), CENTRE)
        return Draws(shard_N, unit_N, np.zeros(len(numbers_N)), centre_N, centre_N)

    def upcoming(self, number: int) -> list[int]:
        """The shard of this unit, and the one behind it."""
        shard = int(_place(self._ends_S, np.array([number % self.num_units]))[0][0])
        return [shard, (shard + 1) % len(self._ends_S)]


class Shuffled(Sampler):
    """For training: every unit once an epoch, each epoch in another order, with random crops.

    A unit that cannot be decoded is replaced by one drawn from all units, keyed on the attempt.

    Args:
        units_S: int64, the number of units in each shard.
        seed: of the run, from 0 to below 2^64.
        source: name of the source.
    """

    attempts = MAX_ATTEMPTS

    def __init__(self, units_S: Ints, *, seed: int, source: str) -> None:
        super().__init__(units_S)
        named = seed.to_bytes(8, "little") + source.encode()
        key = int.from_bytes(blake2b(named, digest_size=8).digest(), "little")
        self._key = (key & _WORD32, key >> 32)
        self._units_S = units_S
        self._orders: dict[int, _EpochOrder] = {}

    def draw(self, numbers_N: Ints, attempt: int = 0) -> Draws:
        """The units at these places of the shuffled order, or replacements."""
        epoch_N, index_N = np.divmod(numbers_N, self.num_units)
        replacement_N, jitter_N, crop_y_N, crop_x_N = self._words(attempt, index_N, epoch_N)
        if attempt:
            place_N = (_fraction(replacement_N) * self.num_units).astype(np.int64)
            shard_N, unit_N = _place(self._ends_S, place_N)
        else:
            shard_N, unit_N = np.empty_like(numbers_N), np.empty_like(numbers_N)
            for epoch in np.unique(epoch_N).tolist():
                here_N = epoch_N == epoch
                shard_N[here_N], unit_N[here_N] = self._order(epoch).locate(index_N[here_N])
        return Draws(shard_N, unit_N, *map(_fraction, (jitter_N, crop_y_N, crop_x_N)))

    def upcoming(self, number: int) -> list[int]:
        """Those of this unit's window, and of the next one as large a share as is done of this.

        So they come in at the pace at which the window is read.
        """
        epoch, index = divmod(number, self.num_units)
        window, done = self._order(epoch).window_at(index)
        if window + 1 < self._order(epoch).num_windows:
            coming = self._order(epoch).shards(window + 1)
        else:
            coming = self._order(epoch + 1).shards(0)
        return self._order(epoch).shards(window) + coming[: math.ceil(done * len(coming))]

    def _words(self, attempt: int, index_N: Ints, epoch_N: Ints) -> tuple[Words, ...]:
        """Four random 32-bit words that only the key and these decide; an epoch counts mod 2^32."""
        index, epoch = index_N.astype(np.uint64), epoch_N.astype(np.uint64)
        low, high = index & np.uint64(_WORD32), index >> np.uint64(32)
        counter = (np.full_like(index, attempt), low, high, epoch & np.uint64(_WORD32))
        return philox(counter, self._key)

    def _order(self, epoch: int) -> _EpochOrder:
        """Kept for the last two epochs, which alternate while a batch goes from one to the next."""
        if epoch not in self._orders:
            if len(self._orders) == 2:
                del self._orders[max(self._orders, key=lambda kept: abs(kept - epoch))]
            # Those without units do not count: token shards, which lack them, have the same order.
            shards_S = np.flatnonzero(self._units_S)
            words = self._shard_words(epoch, len(shards_S))
            self._orders[epoch] = _EpochOrder(shards_S, self._units_S[shards_S], words)
        return self._orders[epoch]

    def _shard_words(self, epoch: int, count: int) -> Words:
        """A random word for each shard and one more; in pieces, as the generator takes memory."""
        words = np.empty(count + 1, dtype=np.uint64)
        for first in range(0, len(words), PIECE):
            shards = np.arange(first, min(first + PIECE, len(words)))
            high, low, _, _ = self._words(_ORDER, shards, np.full_like(shards, epoch))
            words[first : first + PIECE] = (high << np.uint64(32)) | low
        return words


class _EpochOrder:
    """Shuffled shards, cut into windows, and a permutation inside each window.

    Args:
        shards_S: int64, the numbers of the shards.
        units_S: int64, the number of units in each, from 1.
        words: S random 64-bit words to shuffle the shards by, and one to permute by.
    """

    def __init__(self, shards_S: Ints, units_S: Ints, words: Words) -> None:
        self._key = int(words[-1])
        order_S = np.argsort(words[:-1], kind="stable")
        self._shards_S = shards_S[order_S]
        self._ends_S = np.cumsum(units_S[order_S])

    @property
    def num_windows(self) -> int:
        """The last may be smaller."""
        return -(-len(self._ends_S) // WINDOW_SHARDS)

    def shards(self, window: int) -> list[int]:
        """The shards of a window."""
        first = window * WINDOW_SHARDS
        shards: list[int] = self._shards_S[first : first + WINDOW_SHARDS].tolist()
        return shards

    def window_at(self, index: int) -> tuple[int, float]:
        """The window of an index of the epoch, and the share of it that lies up to there."""
        window = int(np.searchsorted(self._ends_S, index, side="right")) // WINDOW_SHARDS
        begin, end = self._span(window)
        return window, (index + 1 - begin) / (end - begin)

    def _span(self, window: int) -> tuple[int, int]:
        """The indices of a window: first, and one past the last."""
        first = window * WINDOW_SHARDS
        begin = int(self._ends_S[first - 1]) if first else 0
        return begin, int(self._ends_S[min(first + WINDOW_SHARDS, len(self._ends_S)) - 1])

    def locate(self, index_N: Ints) -> tuple[Ints, Ints]:
        """(shards, units inside them) at these indices of the epoch."""
        window_N = _place(self._ends_S, index_N)[0] // WINDOW_SHARDS
        place_N = np.empty_like(index_N)
        for window in np.unique(window_N).tolist():
            begin, end = self._span(window)
            here_N = window_N == window
            key = _mix(self._key + window * _GOLDEN)
            place_N[here_N] = begin + permute(index_N[here_N] - begin, end - begin, key)
        shard_N, unit_N = _place(self._ends_S, place_N)
        return self._shards_S[shard_N], unit_N


def permute(index_N: Ints, size: int, key: int) -> Ints:
    """Where these indices go in the pseudorandom permutation of 0 to size-1 that `key` names.

    A swap-or-not shuffle (Hoang, Morris and Rogaway 2012): each round pairs every x with k - x and
    swaps the two or not by a hash of the pair. It permutes any size as it is, in 24 rounds.
    """
    place_N = index_N
    for number in range(ROUNDS):
        round_key = _mix(key + number * _GOLDEN)
        partner_N = (round_key % size - place_N) % size
        pair_N = np.maximum(place_N, partner_N).astype(np.uint64)
        swapped_N = _mix_all(pair_N ^ np.uint64(round_key)) >> np.uint64(63)
        place_N = np.where(swapped_N.astype(bool), partner_N, place_N)
    return place_N


def _place(ends_S: Ints, index_N: Ints) -> tuple[Ints, Ints]:
    """The shards that hold these, where the shards end at `ends_S`, and the places inside them."""
    shard_N = np.searchsorted(ends_S, index_N, side="right")
    return shard_N, index_N - np.where(shard_N > 0, ends_S[shard_N - 1], 0)


def _fraction(word_N: Words) -> Fractions:
    """32 random bits as a number from 0 to below 1."""
    return word_N.astype(np.float64) * 2.0**-32


def _mix(word: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a hash of 64 bits."""
    word &= _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


def _mix_all(word_N: Words) -> Words:
    """`_mix` of each element."""
    word_N = (word_N ^ (word_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word_N = (word_N ^ (word_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word_N ^ (word_N >> np.uint64(31))
