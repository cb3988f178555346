"""Clips by sample number, for evaluations: labelled samples, frames, any stretch of a video."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from toto.data.decode import UndecodableError, decode_sample
from toto.data.index import NO_LABEL
from toto.data.loader import collate
from toto.data.stream import DrawnSequence
from toto.data.units import Units
from toto.data.views import CentreView, Views
from toto.errors import DataError
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from toto.data.batch import Batch
    from toto.data.config import ClipConfig
    from toto.data.decode import Frames
    from toto.data.index import Dataset

__all__ = ["FrameList", "LabelledDataset", "read_clip"]

PIECE = 2**16
CENTRE_VIEW = CentreView()


def read_clip(
    dataset: Dataset,
    sample: int,
    start: int,
    clip: ClipConfig,
    views: Views = CENTRE_VIEW,
    draw: int = 0,
) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """`clip.frames` frames of one sample from decoded frame `start`, in their centre square.

    Args:
        dataset: raw or tokens.
        sample: its number.
        start: the first frame.
        clip: frames, stride and resolution.
        views: what is cut out of pixels, instead of the centre square.
        draw: of the view.

    Returns:
        uint8 `[T, R, R, 3]` pixels, or uint16 `[T, H, W]` codes from token shards.

    Raises:
        DataError: the sample cannot be decoded.
    """

    def cut(frames_THWC: Frames) -> Frames:
        return views.cut(frames_THWC, clip.resolution, sample, draw)

    try:
        if dataset.form == "tokens":
            return dataset.read_codes(sample, start, clip.frames, clip.stride)
        return decode_sample(dataset, sample, start, clip.frames, clip.stride, cut=cut)
    except UndecodableError as error:
        raise DataError(
            f"{dataset.path}: {dataset.origin(sample)} ({dataset.name_of(sample)}): {error}. "
            "Remove the file and pack its folder again"
        ) from error


class FrameList:
    """The frames of all samples that are not excluded, in order; a picture is one frame.

    Memory grows with the shards, not with the frames.

    Args:
        dataset: raw or tokens.

    Raises:
        DataError: every sample is excluded.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._units = Units(dataset, frames=1, stride=1)
        self._ends_S = np.cumsum(self._units.per_shard)

    def __len__(self) -> int:
        return int(self._ends_S[-1])

    def spread(self, count: int) -> Iterator[tuple[int, int]]:
        """(sample, frame) of the middles of `count` equal parts of the list; of all if it is short.

        Middles, because the beginnings would be the first frames where videos are of one length.
        """
        total = len(self)
        count = min(count, total)
        for first in range(0, count, PIECE):
            numbers = range(first, min(first + PIECE, count))
            place_N = np.array([(2 * i + 1) * total // (2 * count) for i in numbers], np.int64)
            shard_N = np.searchsorted(self._ends_S, place_N, side="right")
            unit_N = place_N - (self._ends_S - self._units.per_shard)[shard_N]
            sample_N, frame_N = self._units.locate(shard_N, unit_N, np.zeros(len(numbers)))
            yield from zip(sample_N.tolist(), frame_N.tolist(), strict=True)


class LabelledDataset:
    """A clip of each labelled sample that is not excluded: a picture, or a stretch of a video.

    Args:
        dataset: with labels, raw or tokens.
        clip: of a video; a picture is one frame whatever it says.
        views: which stretch and which part of the frames; the middle and its centre square.

    Raises:
        DataError: no labels, a video that is shorter than the clip, or crops of tokens.
    """

    def __init__(self, dataset: Dataset, clip: ClipConfig, views: Views = CENTRE_VIEW) -> None:
        if not dataset.classes:
            raise DataError(
                f"{dataset.path} has no labels. Pack a folder with one sub-folder a class"
            )
        if views.crops and dataset.form == "tokens":
            raise DataError(
                f"{dataset.path} holds tokens of centre squares, and other crops need pixels. "
                "Name the packed pictures or videos (data.tokens: in_run)"
            )
        self._dataset = dataset
        self._views = views
        self._is_image = dataset.kind == "images"
        self._clip = clip.model_copy(update={"frames": 1}) if self._is_image else clip
        kept = dataset.kept()
        self._samples = kept[dataset.labels(0, dataset.num_samples)[kept] != NO_LABEL].tolist()
        short = [i for i in self._samples if dataset.frames(i) < self._clip.span]
        if short:
            raise DataError(
                f"{dataset.path}: {len(short)} videos are shorter than a clip of "
                f"{number_of(self._clip.span, 'frame')}, such as {dataset.origin(short[0])} with "
                f"{dataset.frames(short[0])}. Lower frames, or leave them out: "
                f"toto doctor {dataset.path} --fix"
            )

    def __len__(self) -> int:
        return len(self._samples)

    def batches(self, order: Sequence[int], size: int, draw: int = 0) -> Iterator[Batch]:
        """The samples of these numbers, in this order, `size` a batch; the last may be smaller.

        Args:
            order: numbers from 0 to len-1: excluded and unlabelled samples are not counted.
            size: B of a batch.
            draw: which one of each sample, as `Views` counts them.
        """
        for first in range(0, len(order), size):
            some = order[first : first + size]
            yield collate([self._sequence(number, draw) for number in some])

    def _sequence(self, number: int, draw: int) -> DrawnSequence:
        sample = self._samples[number]
        room = self._dataset.frames(sample) - self._clip.span
        start = self._views.start(room, sample, draw)
        return DrawnSequence(
            frames=read_clip(self._dataset, sample, start, self._clip, self._views, draw),
            is_image=self._is_image,
            source=0,
            position=sample,
            label=self._dataset.label(sample),
            drawn=1,
            broken=(),
        )
