"""Which clip and which part of its frames an evaluation shows of a sample.

A sample is drawn once or several times: in each epoch of a training with augmentation, or as the
views whose scores are averaged. What a draw shows is a function of the sample and its number.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from toto.data.order import CENTRE
from toto.data.transforms import square, squeeze

if TYPE_CHECKING:
    import numpy.typing as npt

    from toto.data.decode import Frames

__all__ = ["CentreView", "GridViews", "RandomViews", "Views"]

# Of Szegedy et al. 2015, as MAE's linear probing has them (facebookresearch/mae, util/crop.py).
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
LAST = 1 - 2**-20  # `square` takes places below 1
STREAM = 1  # of the generator's key, beside the order of samples


class Views(ABC):
    """A rule of what each draw of a sample shows.

    Attributes:
        crops: whether more than the centre square of a frame is shown, which needs its pixels.
    """

    crops: bool

    @abstractmethod
    def start(self, room: int, sample: int, draw: int) -> int:
        """The first decoded frame of the clip: 0..room."""

    @abstractmethod
    def cut(self, frames_THWC: Frames, resolution: int, sample: int, draw: int) -> Frames:
        """The part of the frames that is shown: uint8 `[T, resolution, resolution, 3]`."""


class CentreView(Views):
    """The clip in the middle, its centre square; all draws are alike."""

    crops = False

    def start(self, room: int, sample: int, draw: int) -> int:
        """See `Views.start`."""
        return room // 2

    def cut(self, frames_THWC: Frames, resolution: int, sample: int, draw: int) -> Frames:
        """See `Views.cut`."""
        return square(frames_THWC, resolution, crop_y=CENTRE, crop_x=CENTRE)


@dataclass(frozen=True)
class GridViews(Views):
    """Clips spread over a video, each in squares spread over its long side, clip by clip.

    As SlowFast tests (facebookresearch/SlowFast): clip i of n begins at share i / n of the room,
    of three squares the outer ones touch the ends. One clip is the one in the middle.

    Attributes:
        clips: of a video; a picture has one.
        squares: 1 or 3.
    """

    clips: int
    squares: int

    @property
    def crops(self) -> bool:  # type: ignore[override]
        """One square is the centre."""
        return self.squares > 1

    def start(self, room: int, sample: int, draw: int) -> int:
        """See `Views.start`."""
        if self.clips == 1:
            return room // 2
        return room * (draw // self.squares) // self.clips

    def cut(self, frames_THWC: Frames, resolution: int, sample: int, draw: int) -> Frames:
        """See `Views.cut`."""
        place = CENTRE if self.squares == 1 else LAST * (draw % self.squares) / (self.squares - 1)
        return square(frames_THWC, resolution, crop_y=place, crop_x=place)


@dataclass(frozen=True)
class RandomViews(Views):
    """A random clip, a random part of its frames resized to the square, mirrored or not.

    The part covers 8 to 100 % of the area at a ratio of 3:4 to 4:3 (its logarithm uniform), the
    same in all frames of the clip; a side that is too long is cut to the frame's.

    Attributes:
        seed: with sample and draw it decides everything.
    """

    crops = True
    seed: int

    def start(self, room: int, sample: int, draw: int) -> int:
        """See `Views.start`."""
        return int(self._uniform(sample, draw)[0] * (room + 1))

    def cut(self, frames_THWC: Frames, resolution: int, sample: int, draw: int) -> Frames:
        """See `Views.cut`."""
        _, area, ratio, y, x, mirror = self._uniform(sample, draw).tolist()
        height, width = frames_THWC.shape[1:3]
        pixels = height * width * (AREA[0] + area * (AREA[1] - AREA[0]))
        wide = math.exp(math.log(RATIO[0]) + ratio * math.log(RATIO[1] / RATIO[0]))
        tall = min(max(round(math.sqrt(pixels / wide)), 1), height)
        broad = min(max(round(math.sqrt(pixels * wide)), 1), width)
        top, left = int(y * (height - tall + 1)), int(x * (width - broad + 1))
        part_THWC = frames_THWC[:, top : top + tall, left : left + broad]
        cut_TRRC = squeeze(part_THWC, resolution)
        return np.ascontiguousarray(cut_TRRC[:, :, ::-1]) if mirror < 0.5 else cut_TRRC

    def _uniform(self, sample: int, draw: int) -> npt.NDArray[np.float64]:
        """Six numbers in [0, 1), of raw words of Philox: the same in all NumPy versions."""
        key = np.array([self.seed, STREAM], dtype=np.uint64)
        words = np.random.Philox(key=key, counter=[0, sample, draw, 0]).random_raw(6)
        return (words >> np.uint64(11)).astype(np.float64) / 2**53
