"""Frozen features: labelled clips → tokens → what stands at some layers of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from toto.errors import DataError, RunError
from toto.tasks.next_token import to_frames
from toto.tasks.probe_bank import LabelledFeatures, LayerFeatures
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from toto.data.batch import Batch
    from toto.model import AutoregressiveModel
    from toto.tokenizers.base import Tokenizer

__all__ = ["FeatureReader", "FeatureSource", "LabelledClips"]


class LabelledClips(Protocol):
    """Samples with a class each, found by number."""

    def __len__(self) -> int:
        """How many samples there are."""

    def batches(self, order: Sequence[int], size: int, draw: int = 0) -> Iterator[Batch]:
        """The samples of these numbers, in this order, `size` a batch; the last may be smaller.

        `draw` tells apart what is shown of a sample: the epoch of an augmentation, or the view.
        """


class FeatureSource(Protocol):
    """Where batches of features come from: the model itself, or a cache of what it gave."""

    def batches(self, order: Sequence[int], size: int, draw: int = 0) -> Iterator[LabelledFeatures]:
        """The features of these samples, in this order, `size` a batch; see `LabelledClips`."""


@dataclass(frozen=True)
class FeatureReader:
    """Reads features from the frozen model, all layers in one pass; start and end are not pooled.

    Attributes:
        model: in evaluation mode, as is the tokenizer, on the same device.
        tokenizer: of the model; it runs in fp32, and only where the batches hold pixels.
        clips: what is read.
        layers: resolved, 0..L.
        num_classes: labels must lie below.
        precision: of the model's pass.
        dtype: what single tokens are rounded to; None keeps their means and variances alone.
        advance: called with the number of samples after each pass of the model.
        read_batch: samples in one pass of the model.
        context: pictures that share a sequence, each after those before it; 1 for clips.
    """

    model: AutoregressiveModel
    tokenizer: Tokenizer
    clips: LabelledClips
    layers: Sequence[int]
    num_classes: int
    precision: Literal["fp32", "bf16"]
    dtype: torch.dtype | None
    advance: Callable[[int], None]
    read_batch: int = 32
    context: int = 1

    @property
    def device(self) -> torch.device:
        """The model's."""
        return next(self.model.parameters()).device

    def tokens_per_sample(self) -> int:
        """T·H·W of the first sample; all are of one shape."""
        batch = next(iter(self.clips.batches([0], 1)))
        with torch.no_grad():
            frames = to_frames(self.tokenizer, batch.to(self.device))
        return frames.shape[1:4].numel()

    def batches(self, order: Sequence[int], size: int, draw: int = 0) -> Iterator[LabelledFeatures]:
        """See `FeatureSource.batches`.

        Raises:
            DataError: a sample without label, or of a class that does not exist.
            RunError: features that are not finite.
        """
        for first in range(0, len(order), size):
            some = order[first : first + size]
            read = self.clips.batches(some, min(self.read_batch, size), draw)
            yield LabelledFeatures.join([self._read(batch) for batch in read])

    @torch.no_grad()  # inference_mode's tensors could not be saved for the probes' backward
    def _read(self, batch: Batch) -> LabelledFeatures:
        check_labels(batch, self.num_classes)
        batch = batch.to(self.device)
        frames = to_frames(self.tokenizer, batch)
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            found = self._features(frames, batch.is_image_B)
        layers = {layer: _keep(found[layer], self.dtype) for layer in self.layers}
        for layer, features in layers.items():
            if not bool(features.var_BD.isfinite().all()):
                raise RunError(
                    f"features of layer {layer} are not finite. Probe an earlier checkpoint, or "
                    "this one in fp32"
                )
        self.advance(len(batch))
        return LabelledFeatures(layers, batch.label_B)

    def _features(self, frames: Tensor, is_image_B: Tensor) -> dict[int, Tensor]:
        """`{layer: BLD}` of the samples; pictures that share a sequence are taken apart again."""
        if self.context == 1:
            return self.model.features(frames, is_image_B, self.layers)
        found: list[dict[int, Tensor]] = []
        whole = len(frames) - len(frames) % self.context
        for part in (frames[:whole], frames[whole:]):
            if len(part):
                together = part.view(-1, min(self.context, len(part)), *part.shape[2:])
                read = self.model.features(together, is_image_B[: len(together)], self.layers)
                found.append({k: x.reshape(len(part), -1, x.shape[-1]) for k, x in read.items()})
        return {layer: torch.cat([part[layer] for part in found]) for layer in self.layers}


def _keep(x_BLD: Tensor, dtype: torch.dtype | None) -> LayerFeatures:
    tokens_BLD = None if dtype is None else x_BLD.to(dtype)
    x_BLD = (x_BLD if tokens_BLD is None else tokens_BLD).to(torch.float32, copy=True)
    mean_BD = x_BLD.mean(1)
    var_BD = x_BLD.sub_(mean_BD[:, None]).square_().mean(1)
    return LayerFeatures(mean_BD, var_BD, x_BLD.shape[1], tokens_BLD)


def check_labels(batch: Batch, num_classes: int) -> None:
    """Refuse samples that a classifier cannot learn from.

    Raises:
        DataError: a label that is missing (-1) or not below `num_classes`.
    """
    wrong_B = (batch.label_B < 0) | (batch.label_B >= num_classes)
    if not bool(wrong_B.any()):
        return
    position = int(batch.position_B[wrong_B][0])
    label = int(batch.label_B[wrong_B][0])
    if label < 0:
        raise DataError(
            f"sample {position} has no label, and a probe learns from labels. Pack the data from "
            "one folder a class, or probe another dataset"
        )
    raise DataError(
        f"sample {position} is of class {label}, but there are "
        f"{number_of(num_classes, 'class', 'classes')} "
        f"(0..{num_classes - 1}). Training and validation data must share their classes"
    )
