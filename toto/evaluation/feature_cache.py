"""Features that are read once: their size against the budget, in memory, and on the disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from toto.errors import UserError
from toto.files import disk_errors, replacing
from toto.tasks.probe_bank import LabelledFeatures, LayerFeatures
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from toto.evaluation.features import FeatureReader, FeatureSource
    from toto.tasks.probe_settings import ProbeSettings

__all__ = ["CachePlan", "FeatureCache", "FeatureStore", "plan_cache"]


class FeatureCache:
    """The features of some samples, held on a device.

    Args:
        samples: the numbers of the samples.
        held: their features, in that order.
    """

    def __init__(self, samples: Sequence[int], held: LabelledFeatures) -> None:
        self._row_of = {sample: row for row, sample in enumerate(samples)}
        self.held = held

    @classmethod
    def read(cls, source: FeatureSource, samples: Sequence[int], size: int) -> FeatureCache:
        """Read them from a source, `size` samples a batch."""
        held: LabelledFeatures | None = None
        start = 0
        for batch in source.batches(samples, size):
            if held is None:
                held = batch.map(lambda x: x.new_empty(len(samples), *x.shape[1:]))
            end = start + len(batch.label_B)
            for kept, x in zip(held.tensors(), batch.tensors(), strict=True):
                kept[start:end] = x
            start = end
        assert held is not None, "at least one sample"
        return cls(samples, held)

    @staticmethod
    def bytes_needed(
        samples: int, layers: int, tokens: int, width: int, dtype: torch.dtype | None
    ) -> int:
        """Memory of a cache: tokens in `dtype` (None: none), their mean and variance in fp32."""
        moments = 2 * width * torch.float32.itemsize
        singles = 0 if dtype is None else tokens * width * dtype.itemsize
        return samples * layers * (moments + singles)

    def batches(self, order: Sequence[int], size: int, draw: int = 0) -> Iterator[LabelledFeatures]:
        """See `FeatureSource.batches`; only samples that were read, of which there is one draw."""
        for start in range(0, len(order), size):
            numbers = [self._row_of[sample] for sample in order[start : start + size]]
            rows = torch.tensor(numbers, device=self.held.label_B.device)
            yield self.held.map(partial(torch.index_select, dim=0, index=rows))


@dataclass(frozen=True)
class FeatureStore:
    """Cached features on the disk, each in a file that is called by all that they depend on.

    Attributes:
        folder: made if it is missing.
        origin: model, data and transform, as plain values of JSON.
    """

    folder: Path
    origin: Mapping[str, object]

    def path(self, source: FeatureReader, samples: Sequence[int]) -> Path:
        """The file of these samples' features, at the source's layers and precision."""
        what = {
            "origin": self.origin,
            "layers": list(source.layers),
            "dtype": str(source.dtype),
            "precision": source.precision,
            "context": (source.context, source.read_batch if source.context > 1 else None),
            "samples": list(samples),
        }
        text = json.dumps(what, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def save(path: Path, cache: FeatureCache) -> None:
    """Write a cache into one file, whole or not at all.

    Raises:
        RunError: the disk is full or refuses.
    """
    tensors = {"label": cache.held.label_B.cpu()}
    for layer, features in cache.held.layers.items():
        tensors[f"{layer}.mean"] = features.mean_BD.cpu()
        tensors[f"{layer}.var"] = features.var_BD.cpu()
        tensors[f"{layer}.length"] = torch.tensor(features.length)
        if features.tokens_BLD is not None:
            tensors[f"{layer}.tokens"] = features.tokens_BLD.cpu()
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            save_file(tensors, unfinished)


def load(
    path: Path, samples: Sequence[int], layers: Sequence[int], device: torch.device
) -> FeatureCache:
    """What `save` wrote of these samples and layers.

    Raises:
        UserError: the file is damaged.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path, device=str(device))
        held = {
            layer: LayerFeatures(
                tensors[f"{layer}.mean"],
                tensors[f"{layer}.var"],
                int(tensors[f"{layer}.length"]),
                tensors.get(f"{layer}.tokens"),
            )
            for layer in layers
        }
        return FeatureCache(samples, LabelledFeatures(held, tensors["label"]))
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}). Remove it and probe again") from error


@dataclass(frozen=True)
class CachePlan:
    """What becomes of the training features.

    Attributes:
        kind: `read` once and kept, `stored` on the disk by an earlier probe, or kept nowhere.
        text: for the user, with the numbers.
        read_batch: samples a batch while reading.
        path: the file on the disk, where one is asked for.
    """

    kind: Literal["read", "stored", "none"]
    text: str
    read_batch: int
    path: Path | None = None

    def carry_out(self, source: FeatureReader, samples: Sequence[int]) -> FeatureSource:
        """The source to train from: the reader itself, or its features, held."""
        if self.kind == "none":
            return source
        if self.kind == "stored":
            assert self.path is not None
            return load(self.path, samples, source.layers, source.device)
        cache = FeatureCache.read(source, samples, self.read_batch)
        if self.path is not None:
            save(self.path, cache)
        return cache


def plan_cache(
    source: FeatureReader,
    samples: Sequence[int],
    width: int,
    settings: ProbeSettings,
    store: FeatureStore | None,
) -> CachePlan:
    """Compute the size of the features first, and hold it against the budget.

    Raises:
        UserError: a cache that the settings ask for does not fit, or has no place.
    """
    tokens, size = source.tokens_per_sample(), source.read_batch
    needed = FeatureCache.bytes_needed(
        len(samples), len(source.layers), tokens, width, source.dtype
    )
    what = (
        f"features of {number_of(len(samples), 'sample')} × "
        f"{number_of(len(source.layers), 'layer')} × {tokens} tokens take "
        f"{needed / 1e9:.3g} GB"
    )
    anew = f"the model reads the data in every epoch, {settings.epochs} in all"
    if settings.cache == "none":
        return CachePlan("none", f"{what}; cache: none: {anew}", size)
    if settings.augmentation != "none":
        return CachePlan("none", f"augmentation: {anew}", size)
    if needed > settings.cache_gb * 1e9:
        more = f"{what}, more than cache_gb {settings.cache_gb:g}"
        mend = "Raise cache_gb, or probe fewer layers or samples"
        if settings.cache is not None:
            raise UserError(f"{more}, and cache: {settings.cache} is asked for. {mend}")
        return CachePlan("none", f"{more}: {anew}. {mend}", size)
    if settings.cache != "disk":
        return CachePlan(
            "read",
            f"{what}: cached (cache_gb {settings.cache_gb:g}); "
            "the time left falls after the first epoch",
            size,
        )
    return _plan_store(what, needed, store, source, samples, size)


def _plan_store(
    what: str,
    needed: int,
    store: FeatureStore | None,
    source: FeatureReader,
    samples: Sequence[int],
    size: int,
) -> CachePlan:
    if store is None:
        raise UserError("cache: disk: there is no run whose folder could hold the features")
    path = store.path(source, samples)
    if path.is_file():
        return CachePlan("stored", f"{what}: taken from {path}", size, path)
    with disk_errors(store.folder):
        store.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(store.folder).free
    if needed > free:
        raise UserError(
            f"{what}, and {store.folder} has {free / 1e9:.3g} GB free. Make room, or write "
            "cache: memory"
        )
    return CachePlan("read", f"{what}: cached, and kept as {path}", size, path)
