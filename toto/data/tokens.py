"""Raw shards to token shards: every frame coded once, before training."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from toto.data.decode import Frame, UndecodableError, decode_image, iterate_video
from toto.data.manifest import TokenInfo
from toto.data.progress import Progress, silent
from toto.data.shards import DatasetWriter
from toto.data.transforms import CENTRE, square
from toto.errors import DataError
from toto.tokenizers.base import TokenGrid, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from toto.data.index import Dataset

__all__ = ["TokenReport", "require_tokenizer", "tokenize_dataset"]

Codes = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class TokenReport:
    """What was coded.

    Attributes:
        path: the token dataset.
        num_samples: pictures or videos.
        num_frames: coded frames.
        num_tokens: codes of all frames.
    """

    path: Path
    num_samples: int
    num_frames: int
    num_tokens: int


def tokenize_dataset(
    dataset: Dataset,
    out: Path,
    *,
    tokenizer: Tokenizer,
    resolution: int,
    batch: int = 64,
    progress: Progress = silent,
) -> TokenReport:
    """Code every picture, or every frame of every video, in its centre square.

    The samples keep their order, keys and labels; each becomes a uint16 .npy `[T, H, W]`. fp32, in
    batches that run on from one sample into the next. Memory holds one batch of frames and the
    codes of one video.

    Args:
        dataset: raw shards.
        out: the token dataset's folder; must not exist yet.
        tokenizer: on the device and in the mode that it should run.
        resolution: side in pixels that the centre square is resized to.
        batch: frames in one call of the tokenizer.
        progress: called after each sample.

    Raises:
        DataError: tokens cannot be made of this dataset or by this tokenizer, `out` exists, or a
            sample cannot be decoded; nothing is left at `out` then.
    """
    info = _token_info(dataset, tokenizer, resolution)
    total = dataset.num_samples
    frames = itertools.chain.from_iterable(
        _centre_frames(dataset, sample, resolution) for sample in range(total)
    )
    codes = _encode(frames, tokenizer, batch)
    with DatasetWriter(
        out,
        kind=dataset.kind,
        form="tokens",
        classes=dataset.classes,
        tokens=info,
        sources=dataset.manifest.sources,
    ) as writer:
        for sample, origin in zip(range(total), dataset.origins(), strict=True):
            count = dataset.frames(sample)
            writer.add(
                dataset.key(sample),
                "npy",
                _npy(np.stack(list(itertools.islice(codes, count)))),
                origin=origin,
                frames=count,
                label=dataset.label(sample),
            )
            progress(sample + 1, total)
    height, width = info.grid
    return TokenReport(
        out, writer.num_samples, writer.num_frames, writer.num_frames * height * width
    )


def require_tokenizer(dataset: Dataset, tokenizer: Tokenizer) -> None:
    """Refuse token shards that another tokenizer made; raw shards suit any.

    Raises:
        DataError: names both tokenizers.
    """
    if dataset.form == "raw" or dataset.tokens.fingerprint == tokenizer.fingerprint():
        return
    raise DataError(
        f"{dataset.path} holds tokens of another tokenizer: {dataset.tokens.tokenizer} "
        f"(fingerprint {dataset.tokens.fingerprint[:12]}), and this run's is "
        f"{tokenizer.config.model_dump(mode='json')} (fingerprint "
        f"{tokenizer.fingerprint()[:12]}). Tokenize the raw shards with it: "
        "toto tokenize SHARDS OUT"
    )


def _token_info(dataset: Dataset, tokenizer: Tokenizer, resolution: int) -> TokenInfo:
    config = tokenizer.config
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
    )


def _centre_frames(dataset: Dataset, sample: int, resolution: int) -> Iterator[Frame]:
    """As many frames of one sample as its index says."""
    payload = dataset.read(sample)
    count = dataset.frames(sample)
    try:
        decoded = 0
        frames = (
            iter([decode_image(payload)]) if dataset.kind == "images" else iterate_video(payload)
        )
        for frame in itertools.islice(frames, count):
            yield square(frame[None], resolution, crop_y=CENTRE, crop_x=CENTRE)[0]
            decoded += 1
        if decoded < count:
            raise UndecodableError(f"{decoded} of its {count} frames can be decoded")
    except UndecodableError as error:
        raise DataError(
            f"{dataset.path}: {dataset.origin(sample)} ({dataset.key(sample)}): {error}. Remove "
            "the file and pack its folder again"
        ) from error


@torch.inference_mode()
def _encode_batch(frames: list[Frame], tokenizer: Tokenizer) -> Codes:
    device = next(
        (tensor.device for tensor in tokenizer.state_dict().values()), torch.device("cpu")
    )
    pixels_BHWC = torch.from_numpy(np.stack(frames)).to(device)
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
