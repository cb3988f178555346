"""`toto view`: a page of a dataset's samples, cut as the stream cuts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from toto.analysis.view import ViewContent, ViewedSample, write_view
from toto.data.config import ClipConfig
from toto.data.index import NO_LABEL, Dataset
from toto.data.stream import SourceStream
from toto.errors import DataError
from toto.jobs.console import say
from toto.jobs.sources import open_dataset
from toto.tokenizers.base import TokenGrid
from toto.tokenizers.config import TOKENIZERS
from toto.wording import number_of

if TYPE_CHECKING:
    from pathlib import Path

    from toto.tokenizers.base import Tokenizer

__all__ = ["view_dataset"]

CAPTION = {
    ("raw", "videos"): "Crop and start drawn as in training; frames {stride} apart.",
    ("raw", "images"): "Crop drawn as in training.",
    (
        "tokens",
        "videos",
    ): "What the tokens hold, by their own tokenizer; frames {stride} apart.",
    ("tokens", "images"): "What the tokens hold, by their own tokenizer.",
}


def view_dataset(
    path: str, out: Path, *, frames: int, stride: int, resolution: int, samples: int, seed: int
) -> None:
    """Write the page.

    Args:
        path: of the dataset, or its address.
        out: the .html file.
        frames: T of a clip; of a picture there is one.
        stride: every stride-th frame.
        resolution: side of the crop in pixels; token shards keep theirs.
        samples: how many, spread over the dataset.
        seed: of crops and starts.

    Raises:
        DataError: the dataset does not fit the clip, or a sample cannot be decoded.
        UserError: token shards whose tokenizer is not installed or has other weights.
    """
    dataset = open_dataset(path)
    tokenizer = _tokenizer(dataset) if dataset.form == "tokens" else None
    if tokenizer is not None:
        resolution = dataset.tokens.resolution
    clip = ClipConfig(frames=frames, stride=stride, resolution=resolution)
    if dataset.kind == "images":
        clip = clip.model_copy(update={"frames": 1})
    stream = SourceStream.shuffled(dataset, clip, seed=seed, name=dataset.name)
    count = min(samples, stream.num_units)
    numbers = [index * stream.num_units // count for index in range(count)]
    places = stream.draw(stream.units_of(numbers))
    drawn = stream.sequences(numbers, source=0, positions=numbers)
    broken = [name for sequence in drawn for name in sequence.broken]
    if broken:
        raise DataError(f"{broken[0]}. Leave such samples out: toto doctor {path} --fix")
    viewed = [
        ViewedSample(
            _title(dataset, sample),
            _pixels(sequence.frames, tokenizer),
            _frame_names(dataset, sequence.frames, start, stride),
        )
        for sequence, sample, start in zip(
            drawn, places.sample_N.tolist(), places.start_N.tolist(), strict=True
        )
    ]
    content = ViewContent(
        name=dataset.name,
        facts=_facts(dataset, clip),
        caption=CAPTION[dataset.form, dataset.kind].format(stride=stride),
        samples=viewed,
        classes=_classes(dataset),
    )
    write_view(out, content)
    say(f"{out}: {number_of(count, 'sample')}, {out.stat().st_size / 1e6:.1f} MB")


def _tokenizer(dataset: Dataset) -> Tokenizer:
    tokenizer = TOKENIZERS.parse(dataset.tokens.tokenizer).build().eval()
    if not tokenizer.has_fingerprint(dataset.tokens.fingerprint):
        raise DataError(
            f"{dataset.path} holds tokens of {dataset.tokens.tokenizer} with the fingerprint "
            f"{dataset.tokens.fingerprint[:12]}, and its weights have another one now "
            f"({tokenizer.fingerprint()[:12]}). Restore them, or tokenize again"
        )
    return tokenizer


def _pixels(frames: npt.NDArray[np.generic], tokenizer: Tokenizer | None) -> npt.NDArray[np.uint8]:
    if tokenizer is None:
        return frames.astype(np.uint8)
    codes_THW = torch.from_numpy(frames.astype(np.int64))
    with torch.no_grad():
        pixels_TCHW = tokenizer.decode(TokenGrid(codes_THW)).clamp(0, 1)
    pixels: npt.NDArray[np.uint8] = (pixels_TCHW * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return pixels


def _frame_names(
    dataset: Dataset, frames: npt.NDArray[np.generic], start: int, stride: int
) -> list[str]:
    if dataset.kind == "images":
        return []
    return [f"frame {start + t * stride}" for t in range(len(frames))]


def _title(dataset: Dataset, sample: int) -> str:
    label = dataset.label(sample)
    named = "" if label == NO_LABEL else f" · {dataset.classes[label]}"
    return f"{dataset.key(sample)}{named}"


def _facts(dataset: Dataset, clip: ClipConfig) -> dict[str, str]:
    frames = int(dataset.frame_counts(0, dataset.num_samples).sum())
    facts = {
        "samples": f"{dataset.num_samples:,} {dataset.kind}",
        "frames": f"{frames:,}",
        "excluded": f"{len(dataset.excluded):,}",
        "shards": f"{len(dataset.manifest.shards):,}",
        "crop": f"{clip.resolution} px",
    }
    if dataset.kind == "videos":
        facts["clip"] = f"{number_of(clip.frames, 'frame')}, stride {clip.stride}"
    if dataset.form == "tokens":
        height, width = dataset.tokens.grid
        facts["tokens"] = f"{height} × {width} a frame, {dataset.tokens.tokenizer['name']}"
    return facts


def _classes(dataset: Dataset) -> dict[str, int]:
    if not dataset.classes:
        return {}
    labels = dataset.labels(0, dataset.num_samples)
    counts = np.bincount(labels[labels >= 0], minlength=len(dataset.classes))
    return dict(zip(dataset.classes, counts.tolist(), strict=True))
