"""Many probes on frozen features, trained side by side.

A probe is a pooling head and a linear classifier, at one layer, learning rate, weight decay and
seed. Probes share the data and nothing else: the bank's loss is the sum of theirs, so each gets the
gradient that it would get alone. Those of one layer and pooling are computed in stacked products.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from itertools import product
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
    "FrozenNorm",
    "LabelledFeatures",
    "LayerFeatures",
    "Probe",
    "ProbeBank",
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

    @staticmethod
    def join(parts: Sequence[LayerFeatures]) -> LayerFeatures:
        """The samples of all parts, which are of one length and kind."""
        mean_BD, var_BD, *tokens = [
            torch.cat(same) for same in zip(*(part.tensors() for part in parts), strict=True)
        ]
        return LayerFeatures(mean_BD, var_BD, parts[0].length, *tokens)


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

    @staticmethod
    def join(parts: Sequence[LabelledFeatures]) -> LabelledFeatures:
        """One batch of several, of the same layers."""
        if len(parts) == 1:
            return parts[0]
        layers = {
            layer: LayerFeatures.join([part.layers[layer] for part in parts])
            for layer in parts[0].layers
        }
        return LabelledFeatures(layers, torch.cat([part.label_B for part in parts]))


class FrozenNorm(nn.Module):
    """BatchNorm without affine, computed from moments, as the map `(x - shift) * scale`.

    Moments are enough, so that normalising tokens costs no pass over them. The running estimates
    are plain averages over the batches seen: frozen features do not drift. Equal to
    `nn.BatchNorm1d(D, eps=1e-6, momentum=None, affine=False)`, with one exception: a single value
    has no variance, so it is normalised by the running estimates, where torch raises an error.

    Args:
        shape: of the estimates, `[D]`, or `[P, 1, D]` of P heads that pool differently.
    """

    eps = 1e-6
    batches: Tensor
    mean: Tensor
    var: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("batches", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))

    def forward(self, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return `shift` and `scale`: of this batch while training, else the running ones.

        Args:
            mean: of the batch, in the shape of the estimates.
            var: of the batch, divided by `count`.
            count: of the values that both are taken over.
        """
        if not self.training or count < 2:
            return self.mean, (self.var + self.eps).rsqrt()
        self.batches += 1
        self.mean += (mean.detach() - self.mean) / self.batches
        self.var += (var.detach() * count / (count - 1) - self.var) / self.batches
        return mean, (var + self.eps).rsqrt()


class Probe(nn.Module):
    """One pooling head and its linear classifier, at one layer.

    Attributes:
        layer: whose features it reads.
        head_config: of its pooling.
        lr: peak learning rate.
        weight_decay: of its matrices.
        seed: of its initial weights.
    """

    def __init__(
        self,
        layer: int,
        head: HeadConfig,
        lr: float,
        weight_decay: float,
        seed: int,
        *,
        width: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.head_config = head
        self.lr = lr
        self.weight_decay = weight_decay
        self.seed = seed
        # The start depends on what the probe is, not on which others stand beside it; learning
        # rates and decays of one layer, head and seed share theirs: they differ in nothing else.
        name = f"{seed} {layer} {head.identity_json().decode()}"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big"))
            self.head = head.build(width)
            self.classifier = nn.Linear(width, num_classes)
            nn.init.trunc_normal_(self.classifier.weight, std=CLASSIFIER_STD)
            nn.init.zeros_(self.classifier.bias)


class ProbeBank(Task[LabelledFeatures]):
    """Every layer × head × learning rate × weight decay × seed of the config, in that order.

    Args:
        config: heads, learning rates, decays, seeds, and whether features are normalised: each
            head says where (`HeadConfig.normalises`).
        layers: the layers probed, each once.
        width: D of the features.
        num_classes: classes of the labels.
    """

    def __init__(
        self,
        config: ProbeBankConfig,
        *,
        layers: Sequence[int],
        width: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.layers = tuple(layers)
        kinds = list(product(config.learning_rates, config.weight_decays, config.seeds))
        self.per_head = len(kinds)
        self.per_layer = len(config.heads) * self.per_head
        self.probes = nn.ModuleList(
            Probe(layer, head, *kind, width=width, num_classes=num_classes)
            for layer in self.layers
            for head in config.heads
            for kind in kinds
        )
        self.token_norms = nn.ModuleDict()
        self.pooled_norms = nn.ModuleDict()
        if config.batch_norm:
            for layer, (index, head) in product(self.layers, enumerate(config.heads)):
                if head.normalises == "tokens":
                    self.token_norms[str(layer)] = FrozenNorm(width)
                else:
                    # Heads without parameters pool alike: their statistics are computed once.
                    kinds_of_pooling = self.per_head if head.num_params(width) else 1
                    self.pooled_norms[f"{layer}_{index}"] = FrozenNorm(kinds_of_pooling, 1, width)

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
            logits_PBC = self._logits(self._at(layer), features, layer)
            loss_PB = _cross_entropy(logits_PBC, batch.label_B)
            loss = loss + loss_PB.mean(1).sum()
            total_P[here] = loss_PB.detach().double().sum(1)
            hits_P[here] = (logits_PBC.argmax(-1) == batch.label_B).double().sum(1)
            count_P[here] = len(batch.label_B)
        return TaskOutput(loss, {"loss": Mean(total_P, count_P), "accuracy": Mean(hits_P, count_P)})

    def scores(self, batch: LabelledFeatures) -> Tensor:
        """The softmax of every probe, `PBC` fp32; the batch holds all layers of the bank."""
        logits = [
            self._logits(self._at(layer), batch.layers[layer], layer) for layer in self.layers
        ]
        return torch.cat(logits).float().softmax(-1)

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

    def _at(self, layer: int) -> list[Probe]:
        start = self.layers.index(layer) * self.per_layer
        return self.members()[start : start + self.per_layer]

    def _logits(self, probes: list[Probe], features: LayerFeatures, layer: int) -> Tensor:
        groups = [probes[i : i + self.per_head] for i in range(0, len(probes), self.per_head)]
        pooled = self._pool([[probe.head for probe in group] for group in groups], features, layer)
        return torch.cat(
            [_classify(group, x_PBD) for group, x_PBD in zip(groups, pooled, strict=True)]
        )

    def _pool(self, groups: list[list[Head]], features: LayerFeatures, layer: int) -> list[Tensor]:
        """What the classifiers of each group read, `PBD`, normalised where its head asks for it."""
        width = features.mean_BD.shape[-1]
        identity = features.mean_BD.new_zeros(width), features.mean_BD.new_ones(width)
        if not self.config.batch_norm:
            return pool_together(groups, features, *identity)
        pooled: dict[int, Tensor] = {}
        kinds = [head.normalises for head in self.config.heads]
        if on_tokens := [index for index, kind in enumerate(kinds) if kind == "tokens"]:
            token_map = self._token_map(features, layer)
            found = pool_together([groups[index] for index in on_tokens], features, *token_map)
            pooled |= zip(on_tokens, found, strict=True)
        if on_pooled := [index for index, kind in enumerate(kinds) if kind == "pooled"]:
            found = pool_together([groups[index] for index in on_pooled], features, *identity)
            for index, x_PBD in zip(on_pooled, found, strict=True):
                pooled[index] = _normalised(x_PBD, self.pooled_norms[f"{layer}_{index}"])
        return [pooled[index] for index in range(len(groups))]

    def _token_map(self, features: LayerFeatures, layer: int) -> tuple[Tensor, Tensor]:
        """`shift_D` and `scale_D` of the norm over all tokens of a batch."""
        mean_BD = features.mean_BD
        var_D = features.var_BD.mean(0) + mean_BD.var(0, correction=0)
        count = len(mean_BD) * features.length
        shift_D, scale_D = self.token_norms[str(layer)](mean_BD.mean(0), var_D, count)
        return shift_D, scale_D


def _normalised(pooled_PBD: Tensor, norm: nn.Module) -> Tensor:
    """Normalise pooled features over the samples of the batch, those of each head on their own."""
    assert isinstance(norm, FrozenNorm)
    some_PBD = pooled_PBD[: len(norm.mean)]
    var_P1D, mean_P1D = torch.var_mean(some_PBD, dim=1, correction=0, keepdim=True)
    shift_P1D, scale_P1D = norm(mean_P1D, var_P1D, pooled_PBD.shape[1])
    normed_PBD: Tensor = (some_PBD - shift_P1D) * scale_P1D
    return normed_PBD.expand_as(pooled_PBD)


def pool_together(
    groups: Sequence[Sequence[Head]], features: LayerFeatures, shift_D: Tensor, scale_D: Tensor
) -> list[Tensor]:
    """What each head gives for `(tokens - shift) * scale`, in few large products.

    Average pooling needs the mean alone. All attention heads read the tokens together: the norm's
    shift cannot move a softmax, and its scale moves into the directions. Other heads get the
    normed tokens, made once. Exact types only: a subclass may pool otherwise.

    Args:
        groups: P heads each, of one config.
        features: of one layer.
        shift_D: of the norm.
        scale_D: likewise.

    Returns:
        `PBD` of each group.
    """
    average_BD = (features.mean_BD - shift_D) * scale_D
    attention = [stacked for group in groups if (stacked := _attention(group))]
    contexts = iter(_contexts(attention, features, shift_D, scale_D))
    normed_BLD: Tensor | None = None
    pooled = []
    for group in groups:
        if stacked := _attention(group):
            pooled.append(_values(stacked, next(contexts)))
        elif all(type(head) is AveragePooling for head in group):
            pooled.append(average_BD.expand(len(group), -1, -1))
        else:
            if normed_BLD is None:
                normed_BLD = (_tokens(features).to(shift_D.dtype) - shift_D) * scale_D
            pooled.append(torch.stack([head(normed_BLD) for head in group]))
    return pooled


def _attention(group: Sequence[Head]) -> list[AttentionPooling]:
    """The group if plain attention is what it is, else nothing."""
    found = [head for head in group if isinstance(head, AttentionPooling)]
    return found if all(type(head) is AttentionPooling for head in group) else []


def _contexts(
    groups: Sequence[Sequence[AttentionPooling]],
    features: LayerFeatures,
    shift_D: Tensor,
    scale_D: Tensor,
) -> list[Tensor]:
    """What `attend` gives for the directions of every head, `BPND` of each group."""
    if not groups:
        return []
    directions_MD = torch.cat([_directions(group).flatten(0, 1) for group in groups]) * scale_D
    context_BMD = (attend(_tokens(features), directions_MD) - shift_D) * scale_D
    counts = [len(group) * group[0].num_heads for group in groups]
    split = torch.split(context_BMD, counts, dim=1)
    batch, _, width = context_BMD.shape
    return [
        context.view(batch, len(group), group[0].num_heads, width)
        for context, group in zip(split, groups, strict=True)
    ]


def _directions(heads: Sequence[AttentionPooling]) -> Tensor:
    """`AttentionPooling.directions` of P heads of one config, `PND`."""
    shape = (len(heads), heads[0].num_heads, heads[0].head_dim)
    query_PNK = torch.stack([head.query for head in heads]).view(shape)
    key_PNKD = torch.stack([head.key.weight for head in heads]).view(*shape, -1)
    return torch.einsum("pnk,pnkd->pnd", query_PNK, key_PNKD) / math.sqrt(heads[0].head_dim)


def _values(heads: Sequence[AttentionPooling], context_BPND: Tensor) -> Tensor:
    """`AttentionPooling.values` of P heads of one config, `PBD`."""
    shape = (len(heads), heads[0].num_heads, heads[0].head_dim)
    value_PNKD = torch.stack([head.value.weight for head in heads]).view(*shape, -1)
    return torch.einsum("bpnd,pnkd->pbnk", context_BPND, value_PNKD).flatten(2)


def _classify(probes: Sequence[Probe], pooled_PBD: Tensor) -> Tensor:
    """The logits `PBC` of P probes in one product."""
    weight_PCD = torch.stack([probe.classifier.weight for probe in probes])
    bias_PC = torch.stack([probe.classifier.bias for probe in probes])
    return torch.baddbmm(bias_PC[:, None], pooled_PBD, weight_PCD.mT)


def _tokens(features: LayerFeatures) -> Tensor:
    if features.tokens_BLD is None:
        raise ValueError("a head that reads tokens was given means alone")
    return features.tokens_BLD


def _cross_entropy(logits_PBC: Tensor, label_B: Tensor) -> Tensor:
    label_PB = label_B.expand(len(logits_PBC), -1)
    return nn.functional.cross_entropy(logits_PBC.mT, label_PB, reduction="none")
