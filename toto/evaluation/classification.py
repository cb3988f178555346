"""Layer-wise probing: which layer's features tell the classes apart, and by which pooling."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from toto.backbones.base import resolve_layers
from toto.data.progress import Progress, silent
from toto.errors import DataError, UserError
from toto.evaluation.features import FeatureCache, FeatureReader, FeatureSource, LabelledClips
from toto.evaluation.results import ProbeResults, ProbeRow, wilson_interval
from toto.heads.config import AverageConfig
from toto.tasks.probe_bank import LabelledFeatures, ProbeBank

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from toto.evaluation.config import ProbeSettings
    from toto.model import AutoregressiveModel
    from toto.tokenizers.base import Tokenizer
    from toto.training.task import Mean

__all__ = ["epoch_order", "run_probes", "train_bank"]

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
    progress: Progress = silent,
    say: Callable[[str], None] = lambda line: None,
) -> ProbeResults:
    """Train all probes of the settings together, and score each on `validation`.

    The backbone is frozen. Its features of the training samples are read once and cached if they
    fit into `settings.cache_gb`; else they are read anew in each epoch, with the same outcome.

    Args:
        model: frozen; on the device where the probes are to be trained.
        tokenizer: the model's, on the same device.
        train: labelled samples to learn from.
        validation: labelled samples to score on.
        settings: which probes, and how they are trained.
        num_classes: labels are 0..num_classes-1.
        precision: of the model's pass; probes compute in fp32.
        progress: called with batches done and batches to do: read, trained on and scored.
        say: called with one line about the cache, before the work begins.

    Raises:
        UserError: a layer that the model lacks.
        DataError: an empty dataset, a sample without label or of an unknown class.
        RunError: features that are not finite.
    """
    model.eval()
    tokenizer.eval()
    layers, dtype = _layers(model, settings), _kept_dtype(settings)
    for name, clips in (("training", train), ("validation", validation)):
        if not len(clips):
            raise DataError(f"the {name} data are empty. Give a dataset with labelled samples")
    samples = _draw(len(train), settings)
    count = _Count(progress)

    def reader(clips: LabelledClips) -> FeatureReader:
        return FeatureReader(model, tokenizer, clips, layers, num_classes, precision, dtype, count)

    source, size = reader(train), settings.batch_size
    width = model.backbone.config.width
    fits = _cache_fits(source, len(samples), width, settings, say)
    steps, reads = math.ceil(len(samples) / size), 1 if fits else settings.epochs
    count.total = steps * (reads + settings.epochs) + math.ceil(len(validation) / size)
    features: FeatureSource = FeatureCache(source, samples, size) if fits else source
    bank = ProbeBank(settings, layers=layers, width=width, num_classes=num_classes)
    bank.to(next(model.parameters()).device)
    losses = train_bank(bank, features, samples, settings, count)
    hits = _score(bank, reader(validation), len(validation), size)
    return ProbeResults(
        _rows(bank, losses, hits, num_classes), len(samples), len(validation), settings.epochs
    )


def epoch_order(samples: Sequence[int], seed: int, epoch: int) -> list[int]:
    """The order in which an epoch (from 0) visits the samples: a function of its arguments."""
    return [samples[index] for index in _permutation(len(samples), seed, epoch + 1)]


class _Count:
    """Counts batches of every kind."""

    def __init__(self, report: Progress) -> None:
        self.report = report
        self.done = 0
        self.total = 0

    def __call__(self) -> None:
        self.done += 1
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


def _cache_fits(
    source: FeatureReader,
    samples: int,
    width: int,
    settings: ProbeSettings,
    say: Callable[[str], None],
) -> bool:
    """Compare the size of the cache with the budget, and say what comes of it."""
    tokens = source.tokens_per_sample()
    needed = FeatureCache.bytes_needed(samples, len(source.layers), tokens, width, source.dtype)
    fits = needed <= settings.cache_gb * 1e9
    what = (
        f"features of {samples} samples × {len(source.layers)} layers × {tokens} tokens take "
        f"{needed / 1e9:.3g} GB"
    )
    if fits:
        say(f"{what}: cached (cache_gb {settings.cache_gb:g})")
    else:
        say(
            f"{what}, more than cache_gb {settings.cache_gb:g}: the model reads the data in each "
            f"of the {settings.epochs} epochs. Raise cache_gb, or probe fewer layers or samples"
        )
    return fits


def train_bank(
    bank: ProbeBank,
    source: FeatureSource,
    samples: Sequence[int],
    settings: ProbeSettings,
    advance: Callable[[], None],
) -> Mean:
    """Train all probes of a bank, each as if it were alone.

    AdamW with the probe's own learning rate and weight decay, and a cosine to 0 over all steps;
    vectors do not decay.

    Args:
        bank: on the features' device.
        source: gives features of all layers of the bank.
        samples: the numbers of the training samples.
        settings: epochs, batch size, seed of the order.
        advance: called after each step.

    Returns:
        The mean training loss of each probe in the last epoch.
    """
    optimizer = _optimizer(bank)
    steps = settings.epochs * math.ceil(len(samples) / settings.batch_size)
    bank.train()
    step = 0
    for epoch in range(settings.epochs):
        losses: list[Mean] = []
        order = epoch_order(samples, settings.data_seed, epoch)
        for batch in source.batches(order, settings.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            losses.append(_backward(bank, batch))
            optimizer.step()
            step += 1
            advance()
    return _add(losses)


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
def _score(bank: ProbeBank, source: FeatureSource, samples: int, size: int) -> Mean:
    bank.eval()
    batches = source.batches(range(samples), size)
    return _add([bank(batch).metrics["accuracy"] for batch in batches])


def _optimizer(bank: ProbeBank) -> torch.optim.Optimizer:
    """AdamW with a group per learning rate and weight decay; vectors do not decay."""
    groups = [
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
    return torch.optim.AdamW(groups, fused=True)


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
