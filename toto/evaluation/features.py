"""Frozen features: labelled clips → tokens → what stands at some layers of the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from toto.errors import DataError, RunError
from toto.tasks.next_token import to_frames
from toto.tasks.probe_bank import LabelledFeatures, LayerFeatures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from toto.data.batch import Batch
    from toto.model import AutoregressiveModel
    from toto.tokenizers.base import Tokenizer

__all__ = ["FeatureCache", "FeatureReader", "FeatureSource", "LabelledClips"]


class LabelledClips(Protocol):
    """Samples with a class each, found by number."""

    def __len__(self) -> int:
        """How many samples there are."""

    def batches(self, order: Sequence[int], size: int) -> Iterator[Batch]:
        """The samples of these numbers, in this order, `size` a batch; the last may be smaller."""


class FeatureSource(Protocol):
    """Where batches of features come from: the model itself, or a cache of what it gave."""

    def batches(self, order: Sequence[int], size: int) -> Iterator[LabelledFeatures]:
        """The features of these samples, in this order, `size` a batch."""


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
        advance: called after each batch.
    """

    model: AutoregressiveModel
    tokenizer: Tokenizer
    clips: LabelledClips
    layers: Sequence[int]
    num_classes: int
    precision: Literal["fp32", "bf16"]
    dtype: torch.dtype | None
    advance: Callable[[], None]

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

    def batches(self, order: Sequence[int], size: int) -> Iterator[LabelledFeatures]:
        """See `FeatureSource.batches`.

        Raises:
            DataError: a sample without label, or of a class that does not exist.
            RunError: features that are not finite.
        """
        for batch in self.clips.batches(order, size):
            check_labels(batch, self.num_classes)
            yield self._read(batch.to(self.device))
            self.advance()

    @torch.no_grad()  # inference_mode's tensors could not be saved for the probes' backward
    def _read(self, batch: Batch) -> LabelledFeatures:
        frames = to_frames(self.tokenizer, batch)
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            found = self.model.features(frames, batch.is_image_B, self.layers)
        layers = {layer: _keep(found[layer], self.dtype) for layer in self.layers}
        for layer, features in layers.items():
            if not bool(features.var_BD.isfinite().all()):
                raise RunError(
                    f"features of layer {layer} are not finite. Probe an earlier checkpoint, or "
                    "this one in fp32"
                )
        return LabelledFeatures(layers, batch.label_B)


class FeatureCache:
    """The features of some samples, read once and held on the model's device.

    Args:
        source: where they are read from.
        samples: the numbers of the samples.
        size: samples a batch while reading.
    """

    def __init__(self, source: FeatureSource, samples: Sequence[int], size: int) -> None:
        self._row_of = {sample: row for row, sample in enumerate(samples)}
        self._held: LabelledFeatures | None = None
        start = 0
        for batch in source.batches(samples, size):
            if self._held is None:
                self._held = batch.map(lambda x: x.new_empty(len(samples), *x.shape[1:]))
            end = start + len(batch.label_B)
            for held, x in zip(self._held.tensors(), batch.tensors(), strict=True):
                held[start:end] = x
            start = end

    @staticmethod
    def bytes_needed(
        samples: int, layers: int, tokens: int, width: int, dtype: torch.dtype | None
    ) -> int:
        """Memory of a cache: tokens in `dtype` (None: none), their mean and variance in fp32."""
        moments = 2 * width * torch.float32.itemsize
        singles = 0 if dtype is None else tokens * width * dtype.itemsize
        return samples * layers * (moments + singles)

    def batches(self, order: Sequence[int], size: int) -> Iterator[LabelledFeatures]:
        """See `FeatureSource.batches`; only samples that were read can be asked for."""
        if self._held is None:
            return
        for start in range(0, len(order), size):
            numbers = [self._row_of[sample] for sample in order[start : start + size]]
            rows = torch.tensor(numbers, device=self._held.label_B.device)
            yield self._held.map(partial(torch.index_select, dim=0, index=rows))


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
        f"sample {position} is of class {label}, but there are {num_classes} classes "
        f"(0..{num_classes - 1}). Training and validation data must share their classes"
    )
