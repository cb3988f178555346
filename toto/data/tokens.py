"""Raw shards to token shards: every frame coded once, before training."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from toto.data.decode import Frame, UndecodableError, decode_image, iterate_video
from toto.data.index import Dataset
from toto.data.manifest import TokenInfo
from toto.data.order import CENTRE
from toto.data.parts import Description, Parts, Sample
from toto.data.philox import philox
from toto.data.progress import Note, Progress, silent, unsaid
from toto.data.transforms import square
from toto.errors import DataError
from toto.tokenizers.base import TokenGrid, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["Rank", "TokenReport", "require_tokenizer", "tokenize_dataset"]

CROP_KEY = (0x746F746F, 0x63726F70)
"""Of the random numbers of crops; the counter is the sample and the crop."""

Codes = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class TokenReport:
    """What was coded: the whole dataset, or what this process did of it.

    Attributes:
        path: the token dataset.
        whole: whether it is there; if not, other processes have shards to finish.
        num_samples: pictures, crops of them, or videos.
        num_frames: coded frames.
        num_tokens: codes of all frames.
    """

    path: Path
    whole: bool
    num_samples: int
    num_frames: int
    num_tokens: int


@dataclass(frozen=True)
class Rank:
    """Which process of how many this is: it takes every `count`-th shard from `number` on."""

    number: int = 0
    count: int = 1


def tokenize_dataset(
    dataset: Dataset,
    out: Path,
    *,
    tokenizer: Tokenizer,
    resolution: int,
    crops: int = 1,
    batch: int = 64,
    rank: Rank = Rank(),
    progress: Progress = silent,
    note: Note = unsaid,
) -> TokenReport:
    """Code every picture, or every frame of every video, in its centre square.

    The samples keep their order, keys, labels and shards; each becomes a uint16 .npy `[T, H, W]`.
    Excluded samples are left out. fp32, in batches that run on from one sample into the next and
    end with the shard, so that a shard's codes are the same whoever makes it. Memory holds one
    batch of frames and the codes of one video.

    Finished shards wait in `.OUT.partial` and are gone on with. The process that finds all of them
    finished, whichever it is, publishes the dataset.

    Args:
        dataset: raw shards.
        out: the token dataset's folder; must not exist yet.
        tokenizer: on the device and in the mode that it should run.
        resolution: side in pixels that the squares are resized to.
        crops: of each picture, each a sample of its own: the centre, then random squares.
        batch: frames in one call of the tokenizer.
        rank: of this process.
        progress: called after each sample with the tokens of this process.
        note: told of a tokenizing that is gone on with.

    Raises:
        DataError: tokens cannot be made of this dataset or by this tokenizer, `out` exists, or a
            sample cannot be decoded; nothing is at `out` then.
    """
    info = _token_info(dataset, tokenizer, resolution, crops)
    manifest = dataset.manifest
    plan = _plan(dataset, info, batch)
    if rank.count > 1 and _is_made(out, plan):
        return _report(Dataset.open(out))
    description = Description(dataset.kind, "tokens", dataset.classes, info, manifest.sources, plan)
    parts = Parts.open(out, plan, len(manifest.shards), note)
    mine = [n for n in parts.missing() if n % rank.count == rank.number]
    coder = ShardCoder(dataset, tokenizer, info, batch)
    total = sum(coder.num_tokens(shard) for shard in mine)
    done = 0

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(done, total)

    written = [parts.write(shard, coder.samples(shard, advance)) for shard in mine]
    if parts.publish(description):
        return _report(Dataset.open(out))
    samples = sum(part.shard.samples for part in written if part.shard)
    return TokenReport(out, False, samples, sum(part.frames for part in written), done)


class ShardCoder:
    """Turns the samples of one raw shard into those of one token shard."""

    def __init__(self, dataset: Dataset, tokenizer: Tokenizer, info: TokenInfo, batch: int) -> None:
        self._dataset = dataset
        self._tokenizer = tokenizer
        self._info = info
        self._batch = batch
        self._origins = _Origins(dataset)

    def num_tokens(self, shard: int) -> int:
        """Codes of a token shard."""
        first, last = self._dataset.shard_starts[shard : shard + 2].tolist()
        counts = self._dataset.frame_counts(first, last)
        frames = int(counts[np.array(self._kept(shard), np.int64) - first].sum())
        height, width = self._info.grid
        return frames * height * width * self._info.crops

    def samples(self, shard: int, advance: Callable[[int], None]) -> Iterator[Sample]:
        """Yield the token samples of a raw shard, in order; `advance` is told the tokens of each.

        The shard is verified first: tokens of damaged data would be stored under the fingerprint
        of the intact dataset.

        Raises:
            DataError: the shard is not what was packed, or a sample cannot be decoded.
        """
        fault = self._dataset.shard_fault(shard)
        if fault is not None:
            raise DataError(f"{fault}. Copy it again, or pack the dataset again")
        kept = self._kept(shard)
        frames = itertools.chain.from_iterable(self._crops_of(sample) for sample in kept)
        codes = _encode(frames, self._tokenizer, self._batch)
        for sample in kept:
            count = self._dataset.frames(sample)
            key, origin = self._dataset.key(sample), self._origins.of(sample)
            for crop in range(self._info.crops):
                codes_THW = np.stack(list(itertools.islice(codes, count)))
                yield Sample(
                    key if self._info.crops == 1 else f"{key}-crop{crop}",
                    "npy",
                    _npy(codes_THW),
                    origin,
                    count,
                    self._dataset.label(sample),
                )
                advance(codes_THW.size)

    def _kept(self, shard: int) -> list[int]:
        first, last = self._dataset.shard_starts[shard : shard + 2].tolist()
        excluded = set(self._dataset.excluded.tolist())
        return [sample for sample in range(first, last) if sample not in excluded]

    def _crops_of(self, sample: int) -> Iterator[Frame]:
        """Each crop of a picture, or each frame of a video, as many as the index says."""
        resolution = self._info.resolution
        for frame in _decode(self._dataset, sample):
            for crop_y, crop_x in _places(sample, self._info.crops):
                yield square(frame[None], resolution, crop_y=crop_y, crop_x=crop_x)[0]


class _Origins:
    """The origins of samples that are asked for in order."""

    def __init__(self, dataset: Dataset) -> None:
        self._lines = enumerate(dataset.origins())

    def of(self, sample: int) -> str:
        return next(origin for number, origin in self._lines if number == sample)


def _places(sample: int, crops: int) -> list[tuple[float, float]]:
    """(y, x) of each crop: the centre, then places that the sample's number alone decides."""
    numbers = np.arange(1, crops, dtype=np.uint64)
    low, high = (np.full_like(numbers, word) for word in (sample % 2**32, sample >> 32))
    y, x, _, _ = philox((low, high, numbers, np.zeros_like(numbers)), CROP_KEY)
    return [(CENTRE, CENTRE), *zip((y / 2**32).tolist(), (x / 2**32).tolist(), strict=True)]


def _plan(dataset: Dataset, info: TokenInfo, batch: int) -> str:
    """A fingerprint of all that decides the bytes of the token shards."""
    content = [
        dataset.manifest.fingerprint(),
        dataset.excluded.tolist(),
        info.identity(),
        batch,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _is_made(out: Path, plan: str) -> bool:
    """Whether other ranks have published these very token shards before this one began."""
    return out.exists() and Dataset.open(out).manifest.made_from == plan


def _report(made: Dataset) -> TokenReport:
    height, width = made.tokens.grid
    frames = int(made.frame_counts(0, made.num_samples).sum())
    return TokenReport(made.folder, True, made.num_samples, frames, frames * height * width)


def require_tokenizer(dataset: Dataset, tokenizer: Tokenizer) -> None:
    """Refuse token shards that another tokenizer made; raw shards suit any.

    Raises:
        DataError: names both tokenizers.
    """
    if dataset.form == "raw" or tokenizer.has_fingerprint(dataset.tokens.fingerprint):
        return
    if tokenizer.config.output == "patches":
        raise DataError(
            f"{dataset.path} holds tokens of {dataset.tokens.tokenizer}, and this run takes "
            f"patches of {tokenizer.config.registered_name}, which are cut out of pixels. Name the "
            "raw shards that they were made of"
        )
    raise DataError(
        f"{dataset.path} holds tokens of another tokenizer: {dataset.tokens.tokenizer} "
        f"(fingerprint {dataset.tokens.fingerprint[:12]}), and this run's is "
        f"{tokenizer.config.model_dump(mode='json')} (fingerprint "
        f"{tokenizer.fingerprint()[:12]}). Tokenize the raw shards with it: "
        "toto tokenize SHARDS OUT --recipe RECIPE"
    )


def _token_info(dataset: Dataset, tokenizer: Tokenizer, resolution: int, crops: int) -> TokenInfo:
    config = tokenizer.config
    if crops > 1 and dataset.kind != "images":
        raise DataError(
            f"{dataset.path} holds videos, of which the centre crop alone is coded. Leave out "
            "--crops, or train from the raw shards, which are cropped at random"
        )
    if dataset.form != "raw":
        raise DataError(f"{dataset.path} holds tokens already. Tokenize the raw shards")
    if config.output != "codes" or config.codebook_size > 2**16:
        raise DataError(
            f"token shards hold codes from 0 to 65535, which {config.registered_name!r} does not "
            "give. Choose a tokenizer with a codebook, or train from raw shards"
        )
    try:
        grid = config.grid(resolution)
    except ValueError as error:
        raise DataError(f"{config.registered_name}: {error}") from error
    return TokenInfo(
        tokenizer=config.model_dump(mode="json"),
        fingerprint=tokenizer.fingerprint(),
        resolution=resolution,
        grid=grid,
        crops=crops,
    )


def _decode(dataset: Dataset, sample: int) -> Iterator[Frame]:
    """As many frames of one sample as its index says."""
    count = dataset.frames(sample)
    try:
        payload, orientation = dataset.read(sample), dataset.orientation(sample)
        decoded = 0
        frames = (
            iter([decode_image(payload, orientation)])
            if dataset.kind == "images"
            else iterate_video(payload, orientation)
        )
        for frame in itertools.islice(frames, count):
            yield frame
            decoded += 1
        if decoded < count:
            raise UndecodableError(f"{decoded} of its {count} frames can be decoded")
    except UndecodableError as error:
        raise DataError(
            f"{dataset.path}: {dataset.origin(sample)} ({dataset.name_of(sample)}): {error}. Let "
            f"streams leave it out: toto doctor {dataset.path} --fix"
        ) from error


def _device_of(tokenizer: Tokenizer) -> torch.device:
    """Of its tensors, those included that its state_dict leaves out; the CPU if it has none."""
    tensors = itertools.chain(tokenizer.parameters(), tokenizer.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


@torch.inference_mode()
def _encode_batch(frames: list[Frame], tokenizer: Tokenizer) -> Codes:
    pixels_BHWC = torch.from_numpy(np.stack(frames)).to(_device_of(tokenizer))
    pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2).float() / 255
    grid = tokenizer.encode(pixels_BCHW)
    assert isinstance(grid, TokenGrid)
    return grid.codes_BHW.cpu().numpy().astype(np.uint16)


def _encode(frames: Iterator[Frame], tokenizer: Tokenizer, batch: int) -> Iterator[Codes]:
    """Frames to codes `[H, W]`, one by one, coded in batches."""
    while chunk := list(itertools.islice(frames, batch)):
        yield from _encode_batch(chunk, tokenizer)


def _npy(codes_THW: Codes) -> bytes:
    file = io.BytesIO()
    np.save(file, codes_THW.astype("<u2"), allow_pickle=False)
    return file.getvalue()
