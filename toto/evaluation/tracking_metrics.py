"""How well masks follow objects: J and F of DAVIS (Perazzi et al. 2016, Pont-Tuset et al. 2017).

The definitions are those of the official code (github davisvideochallenge/davis2017-evaluation,
task semi-supervised), to the last digit. J is the overlap of two masks, F how well their borders
meet. Both are means over the frames of an object without the first, which is given, and the last;
and then over objects, not over sequences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from toto.errors import DataError
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from toto.data.davis import Ids

__all__ = [
    "ObjectScore",
    "SequenceScorer",
    "Statistics",
    "TrackingScores",
    "border_similarity",
    "region_similarity",
    "scored_frames",
]

Mask = npt.NDArray[np.bool_]

BORDER_TOLERANCE = 0.008  # of the picture's diagonal
RECALL_THRESHOLD = 0.5
DECAY_BINS = 4


@dataclass(frozen=True)
class Statistics:
    """Of the frames of one object, or the means of several objects.

    Attributes:
        mean: of the frames.
        recall: share of frames above 0.5.
        decay: mean of the first quarter of the frames, less that of the last.
    """

    mean: float
    recall: float
    decay: float

    @classmethod
    def of_frames(cls, values: Sequence[float]) -> Statistics:
        """Of the values of an object's frames; at least one.

        The quarters share the frames at their ends. The official code keeps those places in 8
        bits, so that it decays by other figures where an object has more than 256 frames; here
        they are whole.
        """
        values_T = np.asarray(values, dtype=np.float64)
        ends = np.round(np.linspace(1, len(values_T), DECAY_BINS + 1) + 1e-10).astype(int)
        first, last = values_T[: ends[1]], values_T[ends[-2] - 1 :]
        return cls(
            float(values_T.mean()),
            float((values_T > RECALL_THRESHOLD).mean()),
            float(first.mean() - last.mean()),
        )

    @classmethod
    def mean_of(cls, several: Iterable[Statistics]) -> Statistics:
        """The mean of each figure."""
        figures = np.array([(one.mean, one.recall, one.decay) for one in several])
        mean, recall, decay = (float(np.mean(column)) for column in figures.T.copy())
        return cls(mean, recall, decay)


@dataclass(frozen=True)
class ObjectScore:
    """One object of one sequence; ids count from 1."""

    sequence: str
    object: int
    j: Statistics
    f: Statistics


@dataclass(frozen=True)
class TrackingScores:
    """All objects of all sequences."""

    objects: tuple[ObjectScore, ...]

    @property
    def j(self) -> Statistics:
        """Means over the objects."""
        return Statistics.mean_of(one.j for one in self.objects)

    @property
    def f(self) -> Statistics:
        """Means over the objects."""
        return Statistics.mean_of(one.f for one in self.objects)

    @property
    def j_and_f(self) -> float:
        """The one figure that results are ranked by: the mean of both means."""
        return (self.j.mean + self.f.mean) / 2


class SequenceScorer:
    """Scores the masks of one sequence, frame by frame; it keeps figures alone.

    Args:
        sequence: its name.
        num_objects: ids count from 1 to this.
    """

    def __init__(self, sequence: str, num_objects: int) -> None:
        self.sequence = sequence
        self.num_objects = num_objects
        self._j: list[list[float]] = [[] for _ in range(num_objects)]
        self._f: list[list[float]] = [[] for _ in range(num_objects)]

    def add(self, truth_HW: Ids, found_HW: Ids, where: str) -> None:
        """Take in a frame; an object that was not found is an empty mask.

        Args:
            truth_HW: the annotation, without void.
            found_HW: what was found there.
            where: of the found mask, for errors.

        Raises:
            DataError: masks of two sizes, or an id that the first annotation has not.
        """
        if found_HW.shape != truth_HW.shape:
            raise DataError(
                f"{where} is {_size(found_HW)}, and its annotation {_size(truth_HW)}. Write masks "
                "at the size of the annotations"
            )
        if found_HW.max() > self.num_objects:
            raise DataError(
                f"{where} holds the id {found_HW.max()}, and {self.sequence} has objects 1 to "
                f"{self.num_objects}. Take the ids from the first annotation"
            )
        for index in range(self.num_objects):
            truth, found = truth_HW == index + 1, found_HW == index + 1
            self._j[index].append(region_similarity(truth, found))
            self._f[index].append(border_similarity(truth, found))

    def scores(self) -> list[ObjectScore]:
        """One of each object, once a frame has been added."""
        return [
            ObjectScore(self.sequence, index + 1, Statistics.of_frames(j), Statistics.of_frames(f))
            for index, (j, f) in enumerate(zip(self._j, self._f, strict=True))
        ]


def scored_frames(sequence: str, length: int) -> range:
    """All but the first and the last.

    Raises:
        DataError: there is none.
    """
    if length < 3:
        raise DataError(
            f"{sequence} has {number_of(length, 'frame')}; the first and the last are not "
            "scored, so that it "
            "takes three. Leave it out with --sequences"
        )
    return range(1, length - 1)


def region_similarity(truth_HW: Mask, found_HW: Mask) -> float:
    """J: pixels of both over pixels of either, 0..1; 1 where both are empty."""
    either = int(np.sum(truth_HW | found_HW))
    return int(np.sum(truth_HW & found_HW)) / either if either else 1.0


def border_similarity(truth_HW: Mask, found_HW: Mask) -> float:
    """F: the harmonic mean of the shares of each border that lie near the other, 0..1.

    Near is at most 0.8 % of the picture's diagonal, rounded up to pixels.
    """
    radius = math.ceil(BORDER_TOLERANCE * float(np.linalg.norm(truth_HW.shape)))
    truth_border, found_border = _border(truth_HW), _border(found_HW)
    in_truth, in_found = int(truth_border.sum()), int(found_border.sum())
    if not in_truth or not in_found:
        return 1.0 if in_truth == in_found else 0.0
    precision = int(np.sum(found_border & _dilate(truth_border, radius))) / in_found
    recall = int(np.sum(truth_border & _dilate(found_border, radius))) / in_truth
    if precision + recall == 0:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def _border(mask_HW: Mask) -> Mask:
    """Pixels that differ from the one to the right, below, or both; what lies outside counts not.

    So the border is one pixel wide and half a pixel off to the upper left.
    """
    # Repeated edges differ from nothing; the corner of the last row and column never counts.
    padded = np.pad(mask_HW, ((0, 1), (0, 1)), mode="edge")
    here, right, below, beyond = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    differs: Mask = (here != right) | (here != below) | (here != beyond)
    return differs


def _dilate(mask_HW: Mask, radius: int) -> Mask:
    """Every pixel with one of the mask within `radius` px, by a disk, as `_dilate_plainly`.

    The disk is made of runs, one a row, which grow as the rows come nearer to its centre: about
    4 · radius passes over the picture instead of one for each pixel of the disk.
    """
    padded = np.pad(mask_HW, radius)
    run, found = padded.copy(), np.zeros_like(padded)
    rows_of: dict[int, list[int]] = {}
    for row in range(-radius, radius + 1):
        rows_of.setdefault(math.isqrt(radius**2 - row**2), []).append(row)
    for reach in range(radius + 1):
        if reach:
            run[:, reach:] |= padded[:, :-reach]
            run[:, :-reach] |= padded[:, reach:]
        for row in rows_of.get(reach, ()):
            found |= np.roll(run, row, axis=0)  # what goes round is padding
    return found[radius:-radius, radius:-radius]


def _dilate_plainly(mask_HW: Mask, radius: int) -> Mask:
    """What `_dilate` returns: the disk around each pixel of the mask."""
    found = np.zeros_like(mask_HW)
    ys, xs = np.ogrid[: mask_HW.shape[0], : mask_HW.shape[1]]
    for y, x in zip(*np.nonzero(mask_HW), strict=True):
        found |= (ys - y) ** 2 + (xs - x) ** 2 <= radius**2
    return found


def _size(ids_HW: Ids) -> str:
    return f"{ids_HW.shape[1]} × {ids_HW.shape[0]} px"
