"""The stream: what stands at each position, as a pure function of (seed, position).

    position → source (mixture) → epoch, index → shard, unit (order) → sample, frames (units)
             → pixels or codes

There is no state: position 10**12 costs what position 0 costs, and a run resumes from an integer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from toto.data.decode import UndecodableError, decode_frames
from toto.data.mixture import Mixture
from toto.data.order import Draw, InOrder, Sampler, Shuffled
from toto.data.transforms import square
from toto.data.units import Units
from toto.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toto.data.config import ClipConfig
    from toto.data.index import Dataset

__all__ = ["DrawnSequence", "SourceStream", "Stream", "StreamSource"]

FrameArray = npt.NDArray[np.unsignedinteger[Any]]
"""uint8 `[T, R, R, 3]` pixels, or uint16 `[T, H, W]` codes."""


@dataclass(frozen=True)
class StreamSource:
    """One dataset of a mixture.

    Attributes:
        name: in the recipe; part of the key of its order.
        dataset: opened.
        weight: its share of the sequences, in proportion to the others' weights.
        stride: instead of the clip's, for videos.
    """

    name: str
    dataset: Dataset
    weight: float = 1.0
    stride: int | None = None


@dataclass(frozen=True)
class DrawnSequence:
    """What stands at one position.

    Attributes:
        frames: uint8 `[T, R, R, 3]` pixels, or uint16 `[T, H, W]` codes.
        is_image: T pictures, rather than T frames of one video.
        source: number of the source.
        position: of the stream.
        label: class of the first frame's sample, or -1.
        drawn: units that were tried, the broken ones included.
        broken: `dataset/key: reason` of the units that could not be decoded and were replaced.
    """

    frames: FrameArray
    is_image: bool
    source: int
    position: int
    label: int
    drawn: int
    broken: tuple[str, ...]


class SourceStream:
    """The sequences of one dataset: 0, 1, 2, …, epoch after epoch.

    A sequence is one unit of a video, or T consecutive units of pictures; the latter may go from
    one epoch into the next.

    Args:
        dataset: opened.
        clip: frames, stride and resolution.
        units: of the dataset at this clip.
        sampler: the order of the units.
    """

    def __init__(self, dataset: Dataset, clip: ClipConfig, units: Units, sampler: Sampler) -> None:
        if dataset.form == "tokens" and dataset.tokens.resolution != clip.resolution:
            raise DataError(
                f"{dataset.path} holds tokens of {dataset.tokens.resolution} px frames, and "
                f"clip.resolution is {clip.resolution}. Set clip.resolution, or tokenize again: "
                f"toto tokenize"
            )
        self.dataset = dataset
        self.num_units = sampler.num_units
        self._clip = clip
        self._units = units
        self._sampler = sampler
        self._is_image = dataset.kind == "images"
        self._units_per_sequence = clip.frames if self._is_image else 1

    @classmethod
    def shuffled(cls, dataset: Dataset, clip: ClipConfig, *, seed: int, name: str) -> SourceStream:
        """For training: each epoch in another order, clips jittered in their slots, random crops.

        Raises:
            DataError: the dataset does not fit the clip.
        """
        units = _units(dataset, clip)
        return cls(dataset, clip, units, Shuffled(units.per_shard, seed=seed, source=name))

    @classmethod
    def in_order(cls, dataset: Dataset, clip: ClipConfig) -> SourceStream:
        """For evaluation: as it stands, clips at the start of their slots, centre crops.

        Raises:
            DataError: the dataset does not fit the clip.
        """
        units = _units(dataset, clip)
        return cls(dataset, clip, units, InOrder(units.per_shard))

    @property
    def sequences_per_epoch(self) -> int:
        """Whole sequences in an epoch, at least 1: few pictures are repeated to fill one."""
        return max(self.num_units // self._units_per_sequence, 1)

    def sequence(self, number: int, *, source: int, position: int) -> DrawnSequence:
        """Sequence `number` of this dataset, said to be of `source` at `position`.

        Raises:
            DataError: too many units in a row cannot be decoded, or the shards are damaged.
        """
        parts = []
        labels = []
        drawn = 0
        broken: list[str] = []
        first = number * self._units_per_sequence
        for unit in range(first, first + self._units_per_sequence):
            frames, label, failures = self._unit(unit)
            parts.append(frames)
            labels.append(label)
            drawn += 1 + len(failures)
            broken += failures
        return DrawnSequence(
            frames=np.concatenate(parts),
            is_image=self._is_image,
            source=source,
            position=position,
            label=labels[0],
            drawn=drawn,
            broken=tuple(broken),
        )

    def _unit(self, unit: int) -> tuple[FrameArray, int, list[str]]:
        """Frames and label of a unit, or of its replacement, and what had to be replaced."""
        epoch, index = divmod(unit, self.num_units)
        failures: list[str] = []
        for attempt in range(self._sampler.attempts):
            draw = self._sampler.draw(epoch, index, attempt)
            sample, start = self._units.locate(draw.shard, draw.unit, draw.jitter)
            try:
                return self._read(sample, start, draw), self.dataset.label(sample), failures
            except UndecodableError as error:
                failures.append(f"{self.dataset.name}/{self.dataset.key(sample)}: {error}")
        raise DataError(
            f"{self.dataset.path}: drew {len(failures)} and could decode none: "
            f"{'; '.join(failures)}. Pack their folder again without those files: "
            "toto pack SRC OUT --skip-broken"
        )

    def _read(self, sample: int, start: int, draw: Draw) -> FrameArray:
        count = 1 if self._is_image else self._clip.frames
        if self.dataset.form == "tokens":
            return self.dataset.read_codes(sample, start, count, self._clip.stride)
        payload = self.dataset.read(sample)
        frames = decode_frames(self.dataset.kind, payload, start, count, self._clip.stride)
        return square(frames, self._clip.resolution, crop_y=draw.crop_y, crop_x=draw.crop_x)


class Stream:
    """The training stream of a mixture.

    Args:
        sources: at least one; all raw, or all tokens.
        clip: what a sequence is cut to.
        seed: of the run.

    Raises:
        DataError: raw and token shards are mixed, a dataset does not fit the clip, or the weights
            have no short cycle.
    """

    def __init__(self, sources: Sequence[StreamSource], clip: ClipConfig, seed: int) -> None:
        forms = {source.dataset.form for source in sources}
        if len(forms) > 1:
            listed = ", ".join(f"{source.name}: {source.dataset.form}" for source in sources)
            raise DataError(
                f"the sources are raw and tokens mixed ({listed}). Tokenize them all "
                "(toto tokenize SHARDS OUT), or none"
            )
        self.names = tuple(source.name for source in sources)
        self.mixture = Mixture([source.weight for source in sources])
        self.sources = tuple(
            SourceStream.shuffled(
                source.dataset,
                clip.model_copy(update={"stride": source.stride or clip.stride}),
                seed=seed,
                name=source.name,
            )
            for source in sources
        )

    def sequence(self, position: int) -> DrawnSequence:
        """What stands at `position`.

        Raises:
            DataError: as `SourceStream.sequence`.
        """
        source, number = self.mixture.locate(position)
        return self.sources[source].sequence(number, source=source, position=position)


def _units(dataset: Dataset, clip: ClipConfig) -> Units:
    if dataset.kind == "images":
        return Units(dataset, frames=1, stride=1)
    return Units(dataset, frames=clip.frames, stride=clip.stride)
