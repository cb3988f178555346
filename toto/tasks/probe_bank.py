"""Many probes on frozen features, trained side by side: every layer × pooling × learning rate.

A probe is a pooling head and a linear classifier. Probes share the data and nothing else: the
bank's loss is the sum of theirs, so each gets the gradient that it would get alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from toto.heads.attention import AttentionPooling, attend
from toto.heads.average import AveragePooling
from toto.training.task import Mean, Task, TaskOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from toto.backbones.base import ParamRole
    from toto.heads.base import Head
    from toto.heads.config import HeadConfig
    from toto.tasks.config import ProbeBankConfig

__all__ = [
    "LabelledFeatures",
    "LayerFeatures",
    "Probe",
    "ProbeBank",
    "TokenNorm",
    "pool_together",
]

CLASSIFIER_STD = 0.01  # He et al. 2022 (MAE), linear probing


@dataclass(frozen=True)
class LayerFeatures:
    """What one layer says of B samples of L tokens.

    Attributes:
        mean_BD: float32 mean over the tokens.
        var_BD: float32 variance over the tokens (divided by L).
        length: L.
        tokens_BLD: the tokens themselves, in the precision that they are kept in; None when only
            average pooling asks.
    """

    mean_BD: Tensor
    var_BD: Tensor
    length: int
    tokens_BLD: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """All tensors; their first axis is B."""
        moments = [self.mean_BD, self.var_BD]
        return moments if self.tokens_BLD is None else [*moments, self.tokens_BLD]

    def map(self, change: Callable[[Tensor], Tensor]) -> LayerFeatures:
        """The same of other samples: `change` is applied to each tensor."""
        mean_BD, var_BD, *tokens = map(change, self.tensors())
        return LayerFeatures(mean_BD, var_BD, self.length, *tokens)


@dataclass(frozen=True)
class LabelledFeatures:
    """A batch of the bank: features of some layers, and the class (from 0) of each sample."""

    layers: Mapping[int, LayerFeatures]
    label_B: Tensor

    def tensors(self) -> list[Tensor]:
        """All tensors; their first axis is B."""
        return [self.label_B, *(x for layer in self.layers.values() for x in layer.tensors())]

    def map(self, change: Callable[[Tensor], Tensor]) -> LabelledFeatures:
        """The same of other samples: `change` is applied to each tensor."""
        layers = {layer: features.map(change) for layer, features in self.layers.items()}
        return LabelledFeatures(layers, change(self.label_B))


class TokenNorm(nn.Module):
    """BatchNorm without affine over all tokens of a batch (AIM's attentive probe; MAE's linear).

    Told as the map `(x - shift) * scale`, from moments alone, so that it costs no pass over the
    tokens. The running estimates are plain averages over the batches seen: frozen features do not
    drift. Equal to `nn.BatchNorm1d(D, eps=1e-6, momentum=None, affine=False)` on `[B·L, D]`.
    """

    eps = 1e-6
    batches: Tensor
    mean_D: Tensor
    var_D: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("batches", torch.zeros(()))
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("var_D", torch.ones(width))

    def forward(self, features: LayerFeatures) -> tuple[Tensor, Tensor]:
        """`shift_D` and `scale_D`: of this batch while training, else the running ones."""
        if not self.training:
            return self.mean_D, (self.var_D + self.eps).rsqrt()
        mean_D = features.mean_BD.mean(0)
        var_D = features.var_BD.mean(0) + features.mean_BD.var(0, correction=0)
        count = len(features.mean_BD) * features.length
        self.batches += 1
        self.mean_D += (mean_D - self.mean_D) / self.batches
        self.var_D += (var_D * count / max(count - 1, 1) - self.var_D) / self.batches
        return mean_D, (var_D + self.eps).rsqrt()


class Probe(nn.Module):
    """One pooling head and its linear classifier, at one layer and learning rate."""

    def __init__(
        self, layer: int, head: HeadConfig, lr: float, *, width: int, num_classes: int, seed: int
    ) -> None:
        super().__init__()
        self.layer = layer
        self.head_config = head
        self.lr = lr
        # The start depends on what the probe is, not on which others stand beside it; the learning
        # rates of one layer and head share theirs, so that they differ in nothing else.
        name = f"{seed} {layer} {head.model_dump_json()}"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big"))
            self.head = head.build(width)
            self.classifier = nn.Linear(width, num_classes)
            nn.init.trunc_normal_(self.classifier.weight, std=CLASSIFIER_STD)
            nn.init.zeros_(self.classifier.bias)


class ProbeBank(Task[LabelledFeatures]):
    """Every layer × head × learning rate of the config, in that order.

    Args:
        config: heads, learning rates, and whether a norm stands in front.
        layers: the layers probed, each once.
        width: D of the features.
        num_classes: classes of the labels.
        seed: of the probes' initial weights.
    """

    def __init__(
        self,
        config: ProbeBankConfig,
        *,
        layers: Sequence[int],
        width: int,
        num_classes: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.layers = tuple(layers)
        self.per_layer = len(config.heads) * len(config.learning_rates)
        self.probes = nn.ModuleList(
            Probe(layer, head, lr, width=width, num_classes=num_classes, seed=seed)
            for layer in self.layers
            for head in config.heads
            for lr in config.learning_rates
        )
        self.norms = nn.ModuleDict()
        if config.batch_norm:
            self.norms.update({str(layer): TokenNorm(width) for layer in self.layers})

    @property
    def trainable(self) -> nn.Module:
        """The bank itself: the features come in ready."""
        return self

    def members(self) -> list[Probe]:
        """All probes, in the order of the metrics."""
        return [probe for probe in self.probes if isinstance(probe, Probe)]

    def forward(self, batch: LabelledFeatures) -> TaskOutput:
        """The sum of the losses of all probes whose layer the batch holds.

        `metrics["loss"]` and `metrics["accuracy"]` have one entry per probe; a probe whose layer
        the batch lacks counts nothing.
        """
        device = batch.label_B.device
        loss = torch.zeros((), device=device)
        total_P, hits_P, count_P = torch.zeros(
            3, len(self.probes), dtype=torch.float64, device=device
        )
        for layer, features in batch.layers.items():
            start = self.layers.index(layer) * self.per_layer
            here = slice(start, start + self.per_layer)
            logits_PBC = self._logits(self.members()[here], features, layer)
            loss_PB = _cross_entropy(logits_PBC, batch.label_B)
            loss = loss + loss_PB.mean(1).sum()
            total_P[here] = loss_PB.detach().double().sum(1)
            hits_P[here] = (logits_PBC.argmax(-1) == batch.label_B).double().sum(1)
            count_P[here] = len(batch.label_B)
        return TaskOutput(loss, {"loss": Mean(total_P, count_P), "accuracy": Mean(hits_P, count_P)})

    def num_targets(self, batch: LabelledFeatures) -> int:
        """The samples of the batch."""
        return len(batch.label_B)

    def param_roles(self) -> dict[str, ParamRole]:
        """Classifiers are readouts, matrices of the heads hidden, vectors like norms: no decay."""
        roles: dict[str, ParamRole] = {}
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                roles[name] = "norm"
            else:
                roles[name] = "readout" if ".classifier." in name else "hidden"
        return roles

    def _logits(self, probes: list[Probe], features: LayerFeatures, layer: int) -> Tensor:
        if self.config.batch_norm:
            shift_D, scale_D = self.norms[str(layer)](features)
        else:
            width = features.mean_BD.shape[-1]
            shift_D, scale_D = features.mean_BD.new_zeros(width), features.mean_BD.new_ones(width)
        pooled = pool_together([probe.head for probe in probes], features, shift_D, scale_D)
        return torch.stack(
            [probe.classifier(x_BD) for probe, x_BD in zip(probes, pooled, strict=True)]
        )


def pool_together(
    heads: Sequence[Head], features: LayerFeatures, shift_D: Tensor, scale_D: Tensor
) -> list[Tensor]:
    """What `[head((tokens - shift) * scale) for head in heads]` gives, in few large products.

    Average pooling needs the mean alone. All attention heads read the tokens together: the norm's
    shift cannot move a softmax, and its scale moves into the directions. Other heads get the
    normed tokens, made once. Exact types only: a subclass may pool otherwise.
    """
    attention = [head for head in heads if type(head) is AttentionPooling]
    contexts = _contexts(attention, features, shift_D, scale_D)
    average_BD = (features.mean_BD - shift_D) * scale_D
    normed_BLD: Tensor | None = None
    pooled = []
    for head in heads:
        if type(head) is AveragePooling:
            pooled.append(average_BD)
        elif type(head) is AttentionPooling:
            pooled.append(head.values(contexts[head]))
        else:
            if normed_BLD is None:
                normed_BLD = (_tokens(features).to(shift_D.dtype) - shift_D) * scale_D
            pooled.append(head(normed_BLD))
    return pooled


def _contexts(
    heads: Sequence[AttentionPooling], features: LayerFeatures, shift_D: Tensor, scale_D: Tensor
) -> dict[Head, Tensor]:
    if not heads:
        return {}
    directions_MD = torch.cat([head.directions() for head in heads]) * scale_D
    context_BMD = (attend(_tokens(features), directions_MD) - shift_D) * scale_D
    split = torch.split(context_BMD, [head.num_heads for head in heads], dim=1)
    return dict(zip(heads, split, strict=True))


def _tokens(features: LayerFeatures) -> Tensor:
    if features.tokens_BLD is None:
        raise ValueError("a head that reads tokens was given means alone")
    return features.tokens_BLD


def _cross_entropy(logits_PBC: Tensor, label_B: Tensor) -> Tensor:
    label_PB = label_B.expand(len(logits_PBC), -1)
    return nn.functional.cross_entropy(logits_PBC.mT, label_PB, reduction="none")
