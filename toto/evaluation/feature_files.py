"""Features of many samples as files: `[T, H, W, D]` per sample and layer, and an index.

    OUT/features-00000.safetensors    tensors called "<sample>.<layer>"
    OUT/index.json                    what they are of; each sample's name, label, shape and file

Finished shards wait in `.OUT.partial` and are gone on with; memory holds one of them.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from toto.data.index import NO_LABEL
from toto.data.loader import collate
from toto.data.progress import Progress, silent
from toto.errors import DataError, RunError, UserError
from toto.files import PARTIAL, disk_errors, replacing, resumed_folder, write_atomic
from toto.sequence import SequenceLayout
from toto.tasks.next_token import to_frames

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from toto.data.middles import Middles
    from toto.data.stream import DrawnSequence
    from toto.model import AutoregressiveModel
    from toto.tokenizers.base import Tokenizer

__all__ = ["Extraction", "write_features"]

SHARD_BYTES = 256 * 2**20
INDEX, PLAN = "index.json", "plan.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Extraction:
    """What is to be written.

    Attributes:
        clips: the samples.
        layers: resolved, 0..L.
        width: D.
        grid: (H, W) of a frame.
        dtype: of the files.
        precision: of the model's pass.
        batch: samples in one pass of the model.
        origin: model, `data` and transform, as plain values of JSON. `data`, the fingerprint of
            all samples together, decides no single file.
    """

    clips: Middles
    layers: Sequence[int]
    width: int
    grid: tuple[int, int]
    dtype: Literal["fp32", "bf16"]
    precision: Literal["fp32", "bf16"]
    batch: int
    origin: Mapping[str, object]

    def bytes_of(self, frames: int) -> int:
        """Of one sample."""
        values = frames * self.grid[0] * self.grid[1] * self.width * len(self.layers)
        return values * DTYPES[self.dtype].itemsize

    def most_bytes(self) -> int:
        """Of all samples; less where videos turn out shorter than a clip."""
        return sum(self.bytes_of(self.clips.most_frames(i)) for i in range(len(self.clips)))

    def shards(self) -> list[range]:
        """The samples of each file, as many as fit into SHARD_BYTES."""
        count = max(SHARD_BYTES // self.bytes_of(self.clips.clip.frames), 1)
        return [
            range(first, min(first + count, len(self.clips)))
            for first in range(0, len(self.clips), count)
        ]

    def settings(self) -> dict[str, object]:
        """Return what all files have in common, as plain values of JSON."""
        return {
            "format_version": 1,
            "origin": dict(self.origin),
            "axes": "THWD",
            "layers": list(self.layers),
            "dtype": self.dtype,
            "precision": self.precision,
        }

    def plan(self) -> dict[str, object]:
        """Return the settings and the samples of each file, which decide its bytes."""
        origin = {key: value for key, value in self.origin.items() if key != "data"}
        return {
            "settings": self.settings() | {"origin": origin},
            "samples": [
                [self.clips.identity(number) for number in samples] for samples in self.shards()
            ],
        }


def write_features(
    out: Path,
    model: AutoregressiveModel,
    tokenizer: Tokenizer,
    extraction: Extraction,
    *,
    progress: Progress = silent,
) -> None:
    """Write the features of all samples; an interrupted writing is resumed.

    Args:
        out: a folder that does not exist yet.
        model: in evaluation mode, as is the tokenizer, on the same device.
        tokenizer: of the model's inputs.
        extraction: of what, and how.
        progress: called with samples done and samples to do.

    Raises:
        UserError: `out` exists, or was begun with other settings.
        DataError: a sample that cannot be read; the next attempt keeps what was finished, also
            after a sample was removed.
        RunError: features that are not finite, or the disk is full or refuses.
    """
    if out.exists():
        raise UserError(f"{out} exists already. Remove it, or choose another folder")
    partial = out.parent / f".{out.name}{PARTIAL}"
    with disk_errors(out):
        _open_partial(partial, extraction.plan())
    entries: list[dict[str, object]] = []
    for number, samples in enumerate(extraction.shards()):
        path = partial / _shard_name(number)
        if not path.is_file():
            tensors = _read_shard(model, tokenizer, extraction, samples)
            with disk_errors(out), replacing(path) as unfinished:
                save_file(tensors, unfinished)
        entries += _entries(path, extraction, samples)
        progress(samples.stop, len(extraction.clips))
    index = extraction.settings() | {
        "classes": list(extraction.clips.classes),
        "samples": entries,
    }
    with disk_errors(out):
        write_atomic(partial / INDEX, json.dumps(index, indent=1) + "\n")
        (partial / PLAN).unlink()
        partial.rename(out)


def _open_partial(partial: Path, plan: Mapping[str, object]) -> None:
    """Begin, or keep the finished files whose samples are the same: one may have been removed.

    Raises:
        UserError: it was begun with other settings.
    """
    resumed_folder(partial)
    path, text = partial / PLAN, json.dumps(plan, sort_keys=True)
    if path.is_file():
        try:
            before, now = json.loads(path.read_bytes()), json.loads(text)
            same = before["settings"] == now["settings"]
            pairs = list(itertools.zip_longest(before["samples"], now["samples"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path} is damaged: {error!r}. Remove {partial}") from error
        if not same:
            raise UserError(
                f"{partial} was begun with other settings or another model. Remove it, or choose "
                "another folder"
            )
        for number, (old, new) in enumerate(pairs):
            if old != new:
                (partial / _shard_name(number)).unlink(missing_ok=True)
    write_atomic(path, text)


def _shard_name(number: int) -> str:
    return f"features-{number:05d}.safetensors"


def _read_shard(
    model: AutoregressiveModel, tokenizer: Tokenizer, extraction: Extraction, samples: range
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for group in _alike(map(extraction.clips.read, samples), extraction.batch):
        for sequence, found in zip(
            group, _features(model, tokenizer, extraction, group), strict=True
        ):
            for layer, x_THWD in found.items():
                tensors[f"{sequence.position}.{layer}"] = x_THWD
    return tensors


def _alike(sequences: Iterator[DrawnSequence], most: int) -> Iterator[list[DrawnSequence]]:
    """Runs of sequences of one length and kind, which can share a pass."""
    group: list[DrawnSequence] = []
    for one in sequences:
        same = group and (
            (len(one.frames), one.is_image) == (len(group[0].frames), group[0].is_image)
        )
        if group and (not same or len(group) == most):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


@torch.no_grad()
def _features(
    model: AutoregressiveModel,
    tokenizer: Tokenizer,
    extraction: Extraction,
    group: list[DrawnSequence],
) -> list[dict[int, Tensor]]:
    """`THWD` of each layer, of each sequence, on the CPU."""
    device = next(model.parameters()).device
    batch = collate(group).to(device)
    frames = to_frames(tokenizer, batch)
    layout = SequenceLayout(*frames.shape[1:4])
    with torch.autocast(device.type, torch.bfloat16, enabled=extraction.precision == "bf16"):
        found = model.features(frames, batch.is_image_B, extraction.layers)
    kept = {
        layer: layout.visual_to_grid(x_BLD).to(DTYPES[extraction.dtype]).cpu()
        for layer, x_BLD in found.items()
    }
    for layer, x_BTHWD in kept.items():
        if not bool(x_BTHWD.isfinite().all()):
            raise RunError(
                f"features of layer {layer} are not finite in {extraction.dtype}. Name an earlier "
                "checkpoint, or write them with --dtype fp32"
            )
    return [
        {layer: x_BTHWD[row].clone() for layer, x_BTHWD in kept.items()}
        for row in range(len(group))
    ]


def _entries(path: Path, extraction: Extraction, samples: range) -> list[dict[str, object]]:
    """What the index says of a shard's samples."""
    with safe_open(path, framework="pt") as file:
        try:
            shapes = [
                file.get_slice(f"{number}.{extraction.layers[0]}").get_shape() for number in samples
            ]
        except SafetensorError as error:
            raise DataError(f"{path} is damaged ({error}). Remove it and run again") from error
    labels = [extraction.clips.label(number) for number in samples]
    return [
        {
            "name": extraction.clips.name(number),
            "sample": number,
            "label": None if label == NO_LABEL else int(label),
            "file": path.name,
            "shape": shape,
        }
        for number, label, shape in zip(samples, labels, shapes, strict=True)
    ]
