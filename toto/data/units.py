"""The units of a dataset: what an epoch counts. One picture, or one clip slot of a video."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from toto.errors import DataError

if TYPE_CHECKING:
    from toto.data.index import Dataset

__all__ = ["Units"]

LISTED_VIDEOS = 20


class Units:
    """Cuts every sample into max(1, floor(frames / (T·stride))) slots of about equal length.

    A picture is a video of one frame: with `frames` and `stride` of 1 it is one slot.

    Args:
        dataset: any.
        frames: T of one unit.
        stride: every stride-th decoded frame.

    Raises:
        DataError: samples are shorter than a clip, (T-1)·stride+1 frames.
    """

    def __init__(self, dataset: Dataset, *, frames: int, stride: int) -> None:
        self._dataset = dataset
        self._slot = frames * stride
        self._span = (frames - 1) * stride + 1
        self._check_lengths(frames, stride)
        shards = len(dataset.manifest.shards)
        self.per_shard = np.array(
            [int(self._slots(shard).sum()) for shard in range(shards)], dtype=np.int64
        )

    def locate(self, shard: int, unit: int, jitter: float) -> tuple[int, int]:
        """(sample, first frame) of a unit of a shard.

        Args:
            shard: its number.
            unit: 0 to per_shard[shard]-1.
            jitter: where in its slot the clip begins, from 0 (start) to below 1 (as late as fits).
        """
        slots = self._slots(shard)
        ends = np.cumsum(slots)
        place = int(np.searchsorted(ends, unit, side="right"))
        sample = int(self._dataset.shard_starts[shard]) + place
        slot = unit - int(ends[place] - slots[place])
        frames = self._dataset.frames(sample)
        begin = slot * frames // int(slots[place])
        end = (slot + 1) * frames // int(slots[place])
        return sample, begin + int(jitter * (end - begin - self._span + 1))

    def _slots(self, shard: int) -> npt.NDArray[np.int64]:
        """Slots of each sample of one shard."""
        first, last = self._dataset.shard_starts[shard : shard + 2]
        frames = self._dataset.index["frames"][first:last].astype(np.int64)
        slots: npt.NDArray[np.int64] = np.maximum(frames // self._slot, 1)
        return slots

    def _check_lengths(self, frames: int, stride: int) -> None:
        short = np.flatnonzero(self._dataset.index["frames"] < self._span)
        if len(short):
            listed = "".join(
                f"\n  {self._dataset.origin(i)}: {self._dataset.frames(i)} frames"
                for i in short[:LISTED_VIDEOS].tolist()
            )
            more = f"\n  and {len(short) - LISTED_VIDEOS} more" if len(short) > LISTED_VIDEOS else ""
            raise DataError(
                f"{self._dataset.path}: {len(short)} of {self._dataset.num_samples} videos are "
                f"shorter than a clip of {frames} frames at stride {stride}, {self._span} frames. "
                f"Lower clip.stride or clip.frames, or pack without them:{listed}{more}"
            )
