"""The stream: what stands at each position, as a pure function of (seed, position).

    position → source (mixture) → epoch, index → shard, unit (order) → sample, frames (units)
             → pixels or codes

There is no state: position 10**12 costs what position 0 costs, and a run resumes from an integer.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from toto.data.decode import clip_decoder, decode_sample
from toto.data.mixture import Mixture
from toto.data.order import InOrder, Sampler, Shuffled
from toto.data.transforms import square_cut
from toto.data.units import Units
from toto.errors import DataError, UndecodableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from toto.data.config import ClipConfig, Decoder
    from toto.data.index import Dataset

__all__ = ["DrawnSequence", "DrawnUnits", "NamedUnit", "SourceStream", "Stream", "StreamSource"]

Ints = npt.NDArray[np.int64]
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
        decoder: of videos.
    """

    name: str
    dataset: Dataset
    weight: float = 1.0
    stride: int | None = None
    decoder: Decoder = "pyav"


@dataclass(frozen=True)
class DrawnSequence:
    """What stands at one position.

    Attributes:
        frames: uint8 `[T, R, R, 3]` pixels, or uint16 `[T, H, W]` codes.
        is_image: T pictures, rather than T frames of one video.
        source: number of the source.
        position: of the stream.
        label: class of the first frame's sample, or -1.
        frame_labels: likewise of each frame's; none where all frames are of one sample.
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
    frame_labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class DrawnUnits:
    """N units: sample and first frame (int64), and the crop's place from 0 to below 1."""

    sample_N: Ints
    start_N: Ints
    crop_y_N: npt.NDArray[np.float64]
    crop_x_N: npt.NDArray[np.float64]


@dataclass(frozen=True)
class NamedUnit:
    """One unit of a position: its source's number, its sample, first frame and crop."""

    position: int
    source: int
    sample: int
    start: int
    crop_y: float
    crop_x: float


@dataclass(frozen=True)
class _ReadUnit:
    frames: FrameArray
    label: int
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
        decoder: of videos.
    """

    def __init__(
        self,
        dataset: Dataset,
        clip: ClipConfig,
        units: Units,
        sampler: Sampler,
        decoder: Decoder = "pyav",
    ) -> None:
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
        self._decode_clip = clip_decoder(decoder)
        self._is_image = dataset.kind == "images"
        self._units_per_sequence = clip.frames if self._is_image else 1

    @classmethod
    def shuffled(
        cls,
        dataset: Dataset,
        clip: ClipConfig,
        *,
        seed: int,
        name: str,
        decoder: Decoder = "pyav",
    ) -> SourceStream:
        """For training: each epoch in another order, clips jittered in their slots, random crops.

        Raises:
            DataError: the dataset does not fit the clip.
            UserError: the decoder is not installed.
        """
        units = _units(dataset, clip)
        order = Shuffled(units.per_shard, seed=seed, source=name)
        return cls(dataset, clip, units, order, decoder)

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

    def sequences(
        self, numbers: Sequence[int], *, source: int, positions: Sequence[int]
    ) -> list[DrawnSequence]:
        """These sequences of this dataset, said to be of `source` at these positions.

        Raises:
            DataError: too many units in a row cannot be decoded, or the shards are damaged.
        """
        unit_N = self.units_of(numbers)
        self.dataset.prefetch(self._upcoming(int(unit_N[-1])))
        read = self._read_units(unit_N)
        return [
            _join(
                list(itertools.islice(read, self._units_per_sequence)),
                self._is_image,
                source,
                position,
            )
            for position in positions
        ]

    def epochs(self, sequences: int) -> float:
        """How often so many sequences go through the dataset."""
        return sequences * self._units_per_sequence / self.num_units

    def units_of(self, numbers: Sequence[int]) -> Ints:
        """The places in the endless order of the units of these sequences, one after another."""
        units = self._units_per_sequence
        unit_N = np.array(numbers, dtype=np.int64)[:, None] * units + np.arange(units)
        return unit_N.ravel()

    def draw(self, unit_N: Ints, attempt: int = 0) -> DrawnUnits:
        """Where these units of the endless order lie, and how they are cut. Nothing is read."""
        draws = self._sampler.draw(unit_N, attempt)
        sample_N, start_N = self._units.locate(draws.shard_N, draws.unit_N, draws.jitter_N)
        return DrawnUnits(sample_N, start_N, draws.crop_y_N, draws.crop_x_N)

    def _upcoming(self, unit: int) -> Iterator[int]:
        """Computed when it is asked for only: a dataset of this machine never does."""
        yield from self._sampler.upcoming(unit)

    def _read_units(self, unit_N: Ints) -> Iterator[_ReadUnit]:
        drawn = self.draw(unit_N)
        for place, unit in enumerate(unit_N.tolist()):
            yield self._read_unit(unit, drawn, place)

    def _read_unit(self, unit: int, drawn: DrawnUnits, place: int) -> _ReadUnit:
        """One unit, or its replacement, and what had to be replaced."""
        failures: list[str] = []
        for attempt in range(self._sampler.attempts):
            if attempt:
                drawn, place = self.draw(np.array([unit]), attempt), 0
            sample = int(drawn.sample_N[place])
            try:
                frames = self._read(sample, drawn, place)
            except UndecodableError as error:
                failures.append(f"{self.dataset.name}/{self.dataset.name_of(sample)}: {error}")
            else:
                return _ReadUnit(frames, self.dataset.label(sample), tuple(failures))
        raise DataError(
            f"{self.dataset.path}: drew {len(failures)} and could decode none: "
            f"{'; '.join(failures)}. Pack their folder again without those files: "
            "toto pack SRC OUT --skip-broken"
        )

    def _read(self, sample: int, drawn: DrawnUnits, place: int) -> FrameArray:
        count = 1 if self._is_image else self._clip.frames
        start = int(drawn.start_N[place])
        if self.dataset.form == "tokens":
            return self.dataset.read_codes(sample, start, count, self._clip.stride)
        cut = square_cut(
            self._clip.resolution,
            crop_y=float(drawn.crop_y_N[place]),
            crop_x=float(drawn.crop_x_N[place]),
        )
        return decode_sample(
            self.dataset, sample, start, count, self._clip.stride, cut=cut, decode=self._decode_clip
        )


class Stream:
    """The training stream of a mixture.

    Args:
        sources: at least one; to be read, all raw or all tokens.
        clip: what a sequence is cut to.
        seed: of the run.

    Raises:
        DataError: a dataset does not fit the clip, or the weights have no short cycle.
        UserError: a decoder is not installed.
    """

    def __init__(self, sources: Sequence[StreamSource], clip: ClipConfig, seed: int) -> None:
        self.names = tuple(source.name for source in sources)
        self.mixture = Mixture([source.weight for source in sources])
        self.sources = tuple(
            SourceStream.shuffled(
                source.dataset,
                clip.model_copy(update={"stride": source.stride or clip.stride}),
                seed=seed,
                name=source.name,
                decoder=source.decoder,
            )
            for source in sources
        )

    def require_one_form(self) -> None:
        """Refuse raw and token shards side by side: a batch holds pixels or codes.

        Raises:
            DataError: names the form of each source.
        """
        forms = [source.dataset.form for source in self.sources]
        if len(set(forms)) > 1:
            listed = ", ".join(f"{n}: {form}" for n, form in zip(self.names, forms, strict=True))
            raise DataError(
                f"the sources are raw and tokens mixed ({listed}). Tokenize them all "
                "(toto tokenize SHARDS OUT), or none"
            )

    def units(self, positions: Sequence[int]) -> Iterator[NamedUnit]:
        """The units that these positions are made of, in order. Nothing is read."""
        source_B, number_B = self.mixture.locate(np.array(positions, dtype=np.int64))
        for position, source, number in zip(
            positions, source_B.tolist(), number_B.tolist(), strict=True
        ):
            drawn = self.sources[source].draw(self.sources[source].units_of([number]))
            for values in zip(*(field.tolist() for field in vars(drawn).values()), strict=True):
                yield NamedUnit(position, source, *values)

    def sequences(self, positions: Sequence[int]) -> list[DrawnSequence]:
        """What stands at these positions.

        Raises:
            DataError: as `SourceStream.sequences`.
        """
        source_B, number_B = self.mixture.locate(np.array(positions, dtype=np.int64))
        found: dict[int, DrawnSequence] = {}
        for source in np.unique(source_B).tolist():
            here = np.flatnonzero(source_B == source).tolist()
            for place, sequence in zip(
                here,
                self.sources[source].sequences(
                    number_B[here].tolist(), source=source, positions=[positions[i] for i in here]
                ),
                strict=True,
            ):
                found[place] = sequence
        return [found[place] for place in range(len(positions))]


def _join(units: list[_ReadUnit], is_image: bool, source: int, position: int) -> DrawnSequence:
    return DrawnSequence(
        frames=units[0].frames if len(units) == 1 else np.concatenate([u.frames for u in units]),
        is_image=is_image,
        source=source,
        position=position,
        label=units[0].label,
        drawn=sum(1 + len(unit.broken) for unit in units),
        broken=tuple(name for unit in units for name in unit.broken),
        frame_labels=tuple(unit.label for unit in units) if is_image else (),
    )


def _units(dataset: Dataset, clip: ClipConfig) -> Units:
    if dataset.kind == "images":
        return Units(dataset, frames=1, stride=1)
    return Units(dataset, frames=clip.frames, stride=clip.stride)
