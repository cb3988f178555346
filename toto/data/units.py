"""The units of a dataset: what an epoch counts. One picture, or one clip slot of a video."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from toto.errors import DataError
from toto.wording import number_of

if TYPE_CHECKING:
    from toto.data.index import Dataset

__all__ = ["Units"]

LISTED_VIDEOS = 20
CHUNK = 1_000_000

Ints = npt.NDArray[np.int64]


class Units:
    """Cuts every sample into max(1, floor(frames / (T·stride))) slots of about equal length.

    A picture is a video of one frame: with `frames` and `stride` of 1 it is one slot. A sample
    that the dataset excludes has none.

    Args:
        dataset: any.
        frames: T of one unit.
        stride: every stride-th decoded frame.

    Raises:
        DataError: samples are shorter than a clip, (T-1)·stride+1 frames; or none is left.
    """

    def __init__(self, dataset: Dataset, *, frames: int, stride: int) -> None:
        self._dataset = dataset
        self._frames, self._stride = frames, stride
        self._slot = frames * stride
        self._span = (frames - 1) * stride + 1
        self.per_shard = self._count()
        if not self.per_shard.any():
            raise DataError(f"{dataset.path}: every sample is excluded. Pack another dataset")

    def locate(
        self, shard_N: Ints, unit_N: Ints, jitter_N: npt.NDArray[np.float64]
    ) -> tuple[Ints, Ints]:
        """(sample, first frame) of each of these units.

        Args:
            shard_N: their shards.
            unit_N: 0 to per_shard[shard]-1.
            jitter_N: where in its slot the clip begins, from 0 (start) to below 1 (as late as
                fits).
        """
        sample_N, start_N = np.empty_like(unit_N), np.empty_like(unit_N)
        for shard in np.unique(shard_N).tolist():
            here = shard_N == shard
            first, last = self._dataset.shard_starts[shard : shard + 2].tolist()
            frames_M = self._dataset.frame_counts(first, last)
            slots_M = self._slots(first, frames_M)
            ends_M = np.cumsum(slots_M)
            place_N = np.searchsorted(ends_M, unit_N[here], side="right")
            count_N = frames_M[place_N]
            slots_N = slots_M[place_N]
            slot_N = unit_N[here] - (ends_M[place_N] - slots_N)
            begin_N, end_N = slot_N * count_N // slots_N, (slot_N + 1) * count_N // slots_N
            room_N = end_N - begin_N - self._span + 1
            sample_N[here] = first + place_N
            start_N[here] = begin_N + (jitter_N[here] * room_N).astype(np.int64)
        return sample_N, start_N

    def _slots(self, first: int, frames_M: Ints) -> Ints:
        """Slots of the samples from `first` on, whose frames these are."""
        slots_M = np.maximum(frames_M // self._slot, 1)
        excluded = self._dataset.excluded
        begin, end = np.searchsorted(excluded, [first, first + len(frames_M)]).tolist()
        slots_M[excluded[begin:end] - first] = 0
        return slots_M

    def _count(self) -> Ints:
        """Units of each shard, in pieces: memory holds no array of all samples."""
        starts = self._dataset.shard_starts
        per_shard = np.zeros(len(starts) - 1, dtype=np.int64)
        short: list[int] = []
        num_short = 0
        shard = 0
        while shard < len(per_shard):
            # As many whole shards as a piece holds, and one at least.
            until = int(np.searchsorted(starts, starts[shard] + CHUNK, side="right")) - 1
            until = max(until, shard + 1)
            first, last = int(starts[shard]), int(starts[until])
            frames_M = self._dataset.frame_counts(first, last)
            slots_M = self._slots(first, frames_M)
            per_shard[shard:until] = np.add.reduceat(slots_M, starts[shard:until] - first)
            too_short = np.flatnonzero((frames_M < self._span) & (slots_M > 0))
            num_short += len(too_short)
            short += (first + too_short[: LISTED_VIDEOS - len(short)]).tolist()
            shard = until
        if num_short:
            self._refuse(short, num_short)
        return per_shard

    def _refuse(self, short: list[int], num_short: int) -> None:
        dataset = self._dataset
        listed = "".join(
            f"\n  {dataset.origin(sample)}: {number_of(dataset.frames(sample), 'frame')}"
            for sample in short
        )
        more = f"\n  and {num_short - len(short)} more" if num_short > len(short) else ""
        raise DataError(
            f"{dataset.path}: {num_short} of {dataset.num_samples} videos are shorter than a clip "
            f"of {number_of(self._frames, 'frame')} at stride {self._stride}, "
            f"{number_of(self._span, 'frame')}. "
            "Lower clip.stride or clip.frames, or leave them out: "
            f"toto doctor {dataset.path} --frames {self._frames} --stride {self._stride} --fix:"
            f"{listed}{more}"
        )
