"""Layer-wise probing: which layer's features tell the classes apart, and by which pooling."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from toto.backbones.base import resolve_layers
from toto.data.progress import Progress, silent
from toto.errors import DataError, UserError
from toto.evaluation.feature_cache import FeatureStore, plan_cache
from toto.evaluation.features import FeatureReader, FeatureSource, LabelledClips
from toto.evaluation.lars import Lars
from toto.evaluation.results import ProbeResults, ProbeRow, wilson_interval
from toto.heads.config import AverageConfig
from toto.tasks.probe_bank import LabelledFeatures, ProbeBank
from toto.training.task import Mean

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from toto.model import AutoregressiveModel
    from toto.tasks.probe_settings import ProbeSettings
    from toto.tokenizers.base import Tokenizer

__all__ = ["epoch_order", "run_probes", "train_bank"]

CONTEXT_ORDER = 2**63  # a number that no epoch has
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def run_probes(
    model: AutoregressiveModel,
    tokenizer: Tokenizer,
    train: LabelledClips,
    validation: LabelledClips,
    *,
    settings: ProbeSettings,
    num_classes: int,
    precision: Literal["fp32", "bf16"],
    context: int = 1,
    store: FeatureStore | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda line: None,
) -> ProbeResults:
    """Train all probes of the settings together, and score each on `validation`.

    The backbone is frozen. Its features of the training samples are read once and cached where the
    settings and the budget allow; else they are read anew in each epoch. Without augmentation and
    with pictures alone in their sequence the outcome is the same.

    Args:
        model: frozen; on the device where the probes are to be trained.
        tokenizer: the model's, on the same device.
        train: labelled samples to learn from; draw e is what epoch e shows.
        validation: labelled samples to score on; draw v is view v.
        settings: which probes, and how they are trained.
        num_classes: labels are 0..num_classes-1.
        precision: of the model's pass; probes compute in fp32.
        context: pictures that share a sequence; 1: none do.
        store: where features are kept on the disk, if the settings say so.
        progress: called with samples done and samples to do: read, trained on and scored.
        say: called with one line about the bank and one about the cache, before the work begins.

    Raises:
        UserError: a layer that the model lacks, a cache that was asked for and does not fit, or
            batches that cut the sequences which pictures share.
        DataError: an empty dataset, a sample without label or of an unknown class.
        RunError: features that are not finite.
    """
    model.eval()
    tokenizer.eval()
    layers, dtype = _layers(model, settings), _kept_dtype(settings)
    samples, held_out = _to_read(train, validation, settings, context)
    _require_statistics(settings, len(samples))
    count = _Count(progress)
    read_batch = math.ceil(settings.read_batch / context) * context  # whole sequences

    def reader(clips: LabelledClips) -> FeatureReader:
        return FeatureReader(
            model, tokenizer, clips, layers, num_classes, precision, dtype, count,
            read_batch, context,
        )  # fmt: skip

    source = reader(train)
    width = model.backbone.config.width
    plan = plan_cache(source, samples, width, settings, store)
    if plan.kind == "none" and settings.batch_size % context:
        raise UserError(
            f"context: packed puts {context} pictures into a sequence, and each batch of "
            f"{settings.batch_size} would cut one short. Take a batch_size that {context} divides"
        )
    bank = ProbeBank(settings, layers=layers, width=width, num_classes=num_classes)
    bank.to(source.device)
    say(_describe(bank, settings))
    say(plan.text)
    views = settings.test_clips * settings.test_crops
    reads = {"read": 1, "stored": 0, "none": settings.epochs}[plan.kind]
    count.total = len(samples) * (reads + settings.epochs) + len(validation) * views
    features = plan.carry_out(source, samples)
    losses = train_bank(bank, features, samples, settings, count)
    hits = _score(bank, reader(validation), held_out, views, read_batch)
    return ProbeResults(
        _rows(bank, losses, hits, num_classes), len(samples), len(validation), settings.epochs
    )


def epoch_order(samples: Sequence[int], seed: int, epoch: int) -> list[int]:
    """The order in which an epoch (from 0) visits the samples: a function of its arguments."""
    return [samples[index] for index in _permutation(len(samples), seed, epoch + 1)]


def _to_read(
    train: LabelledClips, validation: LabelledClips, settings: ProbeSettings, context: int
) -> tuple[list[int], list[int]]:
    """The samples of both datasets, in the order in which they are read first."""
    for name, clips in (("training", train), ("validation", validation)):
        if not len(clips):
            raise DataError(f"the {name} data are empty. Give a dataset with labelled samples")
    samples, held_out = _draw(len(train), settings), list(range(len(validation)))
    if context == 1:
        return samples, held_out
    # Neighbours in a sequence must not tell the class, as those of a folder would.
    return _shuffled(samples, settings.data_seed), _shuffled(held_out, settings.data_seed)


def _require_statistics(settings: ProbeSettings, samples: int) -> None:
    """Refuse batches of one sample where pooled features are normalised over the batch.

    Raises:
        UserError: all batches would be of one sample.
    """
    normalised = [head.label for head in settings.heads if head.normalises == "pooled"]
    if settings.batch_norm and normalised and min(settings.batch_size, samples) < 2:
        raise UserError(
            f"batches of one sample: the pooled features of {', '.join(normalised)} are "
            "normalised over the samples of a batch. Take a batch_size of 2 or more and at least "
            "2 samples, or batch_norm: false"
        )


def _shuffled(samples: Sequence[int], seed: int) -> list[int]:
    """The order in which pictures that share sequences are read."""
    return [samples[index] for index in _permutation(len(samples), seed, CONTEXT_ORDER)]


class _Count:
    """Counts samples that were read, trained on or scored."""

    def __init__(self, report: Progress) -> None:
        self.report = report
        self.done = 0
        self.total = 0

    def __call__(self, samples: int) -> None:
        self.done += samples
        self.report(self.done, self.total)


def _layers(model: AutoregressiveModel, settings: ProbeSettings) -> list[int]:
    depth = model.backbone.config.num_layers
    if settings.layers == "all":
        return list(range(depth + 1))
    try:
        return sorted(set(resolve_layers(settings.layers, depth).values()))
    except ValueError as error:
        raise UserError(f"layers: {error}. Name layers of this model, or write all") from error


def _kept_dtype(settings: ProbeSettings) -> torch.dtype | None:
    """What single tokens are kept in; None where average pooling alone asks."""
    if all(type(head) is AverageConfig for head in settings.heads):
        return None
    return _DTYPES[settings.feature_dtype]


def _draw(count: int, settings: ProbeSettings) -> list[int]:
    if settings.max_samples is None or settings.max_samples >= count:
        return list(range(count))
    return sorted(_permutation(count, settings.data_seed, 0)[: settings.max_samples])


def _permutation(count: int, seed: int, number: int) -> list[int]:
    """The permutation of that number: only raw words of Philox, the same in all NumPy versions."""
    words = np.random.Philox(key=seed, counter=[0, 0, 0, number]).random_raw(count)
    order: list[int] = np.argsort(words, kind="stable").tolist()
    return order


def _describe(bank: ProbeBank, settings: ProbeSettings) -> str:
    """How many probes there are, and what they take: weights, gradients and optimizer's state."""
    probes = len(bank.members())
    numbers = sum(parameter.numel() for parameter in bank.parameters())
    copies = {"adamw": 4, "lars": 3}[settings.optimizer]
    return (
        f"{probes} probes of {numbers / 1e6:.3g} M parameters together, trained in "
        f"{copies * 4 * numbers / 1e9:.3g} GB"
    )


def train_bank(
    bank: ProbeBank,
    source: FeatureSource,
    samples: Sequence[int],
    settings: ProbeSettings,
    advance: Callable[[int], None],
) -> Mean:
    """Train all probes of a bank, each as if it were alone.

    AdamW or LARS with the probe's own learning rate and weight decay; a linear warm-up from 0, then
    a cosine to 0 over the other steps; vectors do not decay.

    Args:
        bank: on the features' device.
        source: gives features of all layers of the bank.
        samples: the numbers of the training samples.
        settings: epochs, batch size, warm-up, optimizer, seed of the order.
        advance: called with the number of samples after each step.

    Returns:
        The mean training loss of each probe in the last epoch.
    """
    optimizer = _optimizer(bank, settings.optimizer)
    steps_an_epoch = math.ceil(len(samples) / settings.batch_size)
    bank.train()
    step = 0
    for epoch in range(settings.epochs):
        losses: list[Mean] = []
        order = epoch_order(samples, settings.data_seed, epoch)
        for batch in source.batches(order, settings.batch_size, epoch):
            scale = _rate(step / steps_an_epoch, settings)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * scale
            optimizer.zero_grad()
            losses.append(_backward(bank, batch))
            optimizer.step()
            step += 1
            advance(len(batch.label_B))
    return _add(losses)


def _rate(epoch: float, settings: ProbeSettings) -> float:
    """The share of the peak learning rate after so many epochs."""
    warmup = settings.warmup_epochs
    if epoch < warmup:
        return epoch / warmup
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (settings.epochs - warmup)))


def _backward(bank: ProbeBank, batch: LabelledFeatures) -> Mean:
    """Gradients of all probes, a layer at a time: one layer's activations are held, not all.

    Returns:
        The training loss of each probe.
    """
    losses = []
    for layer, features in batch.layers.items():
        output = bank(LabelledFeatures({layer: features}, batch.label_B))
        output.loss.backward()
        losses.append(output.metrics["loss"])
    return _add(losses)


@torch.no_grad()
def _score(
    bank: ProbeBank, source: FeatureSource, order: Sequence[int], views: int, size: int
) -> Mean:
    """Hits of each probe by the mean of its softmax scores over the views of a sample."""
    bank.eval()
    hits_P = torch.zeros(len(bank.members()), dtype=torch.float64)
    for first in range(0, len(order), size):
        some = order[first : first + size]
        scores_PBC: Tensor | float = 0.0
        for view in range(views):
            (batch,) = source.batches(some, len(some), view)
            scores_PBC = scores_PBC + bank.scores(batch)
        assert isinstance(scores_PBC, Tensor)
        hits_P += (scores_PBC.argmax(-1) == batch.label_B).double().sum(1).cpu()
    return Mean(hits_P, torch.full_like(hits_P, len(order)))


def _optimizer(bank: ProbeBank, name: Literal["adamw", "lars"]) -> torch.optim.Optimizer:
    """With a group per learning rate and weight decay; vectors do not decay."""
    groups: list[dict[str, Any]] = [
        {
            "params": [
                parameter
                for probe in bank.members()
                if (probe.lr, probe.weight_decay) == (lr, weight_decay)
                for parameter in probe.parameters()
                if (parameter.ndim > 1) == decays
            ],
            "peak": lr,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for lr, weight_decay in product(bank.config.learning_rates, bank.config.weight_decays)
        for decays in (True, False)
    ]
    return Lars(groups) if name == "lars" else torch.optim.AdamW(groups, fused=True)


def _add(means: list[Mean]) -> Mean:
    total = means[0]
    for mean in means[1:]:
        total = total + mean
    return total


def _rows(bank: ProbeBank, losses: Mean, hits: Mean, num_classes: int) -> tuple[ProbeRow, ...]:
    rows = []
    columns = (losses.value().tolist(), hits.total.tolist(), hits.count.tolist())
    for probe, loss, hit, count in zip(bank.members(), *columns, strict=True):
        low, high = wilson_interval(hit, count)
        rows.append(
            ProbeRow(
                layer=probe.layer,
                head=probe.head_config.label,
                lr=probe.lr,
                weight_decay=probe.weight_decay,
                seed=probe.seed,
                accuracy=hit / count,
                low=low,
                high=high,
                loss=loss if math.isfinite(loss) else None,
                chance=1 / num_classes,
            )
        )
    return tuple(rows)
