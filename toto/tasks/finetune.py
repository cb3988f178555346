"""Fine-tuning as in the paper's §4.2: next tokens, and probes behind a stop-gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from toto.heads.config import AverageConfig
from toto.tasks.next_token import Classifier, NextTokenTask
from toto.tasks.probe_bank import LabelledFeatures, LayerFeatures, ProbeBank
from toto.training.task import Mean, TaskOutput

if TYPE_CHECKING:
    from toto.backbones.base import ParamRole
    from toto.data.batch import Batch
    from toto.model import AutoregressiveModel
    from toto.tasks.config import Labels, ProbesConfig
    from toto.tokenizers.base import Tokenizer
    from toto.training.config import OptimizerConfig

__all__ = ["ModelAndHeads", "NextTokenProbesTask", "token_norm"]

PROBES = "probes"


class ModelAndHeads(nn.Module):
    """A model, its weights under the names that they have alone, and heads on it under another.

    Args:
        model: whose parts these are.
        name: of the heads.
        heads: what reads the model's features.
    """

    def __init__(self, model: AutoregressiveModel, name: str, heads: nn.Module) -> None:
        super().__init__()
        self.interface = model.interface
        self.backbone = model.backbone
        self.add_module(name, heads)


def token_norm(x_BLD: Tensor) -> Tensor:
    """Each token with mean 0 and variance 1 over its D values, fp32; nothing is learned."""
    return layer_norm(x_BLD.float(), x_BLD.shape[-1:])


class NextTokenProbesTask(NextTokenTask):
    """The next token of every position, and a class from every layer.

    Features reach the probes detached, so that the model's gradients are those of
    `NextTokenTask`, and normed token by token: no batch decides what a sample gives. The probes'
    loss is the sum over all probes of the mean over the pictures, or clips, of the batch, where
    those without label count 0; weighed as the next-token loss is, it is the same however a step
    is dealt to micro-batches and ranks. Metrics beside those of `NextTokenTask`: "accuracy", one
    entry per probe, and "probe_loss", the mean of all.

    Args:
        model: what is trained.
        tokenizer: the one the model was made for.
        target_tokenizer: the one of its targets; None where the inputs are the targets.
        num_sources: of the mixture that `source_B` counts.
        labels: which of them have labels.
        probes: which probes there are at every layer.
    """

    def __init__(
        self,
        model: AutoregressiveModel,
        tokenizer: Tokenizer,
        target_tokenizer: Tokenizer | None = None,
        *,
        num_sources: int,
        labels: Labels,
        probes: ProbesConfig,
    ) -> None:
        super().__init__(model, tokenizer, target_tokenizer, num_sources=num_sources)
        self.labels = labels
        backbone = model.backbone.config
        self.bank = ProbeBank(
            probes.bank(),
            layers=range(backbone.num_layers + 1),
            width=backbone.width,
            num_classes=labels.num_classes,
        )
        self._needs_tokens = any(type(head) is not AverageConfig for head in probes.heads)
        self._trained = ModelAndHeads(model, PROBES, self.bank)

    @property
    def trainable(self) -> nn.Module:
        """The model and the probes."""
        return self._trained

    @property
    def can_be_parted(self) -> bool:
        """No: the bank reads the weights of many probes in one product."""
        return False

    @property
    def classifiers(self) -> tuple[Classifier, ...]:
        """The probes."""
        return tuple(
            Classifier(probe.layer, probe.head_config, probe.lr) for probe in self.bank.members()
        )

    def forward(self, batch: Batch) -> TaskOutput:
        """See the class."""
        frames, targets = self.tokens(batch)
        losses_BL, features = self.model.losses_with_features(
            frames, batch.is_image_B, targets, self.bank.layers
        )
        predicted = self.output(losses_BL, frames, batch)
        probed = self._probe(features, batch)
        return TaskOutput(predicted.loss + probed.loss, predicted.metrics | probed.metrics)

    def param_roles(self) -> dict[str, ParamRole]:
        """The model's, and probes."""
        probes: dict[str, ParamRole] = {
            f"{PROBES}.{name}": "probe" for name, _ in self.bank.named_parameters()
        }
        return super().param_roles() | probes

    def lr_scales(self, optimizer: OptimizerConfig) -> dict[str, float]:
        """The model's by layer; of each probe its own peak over that of the run."""
        rates = {
            parameter: probe.lr for probe in self.bank.members() for parameter in probe.parameters()
        }
        probes = {
            f"{PROBES}.{name}": rates[parameter] / optimizer.lr
            for name, parameter in self.bank.named_parameters()
        }
        return super().lr_scales(optimizer) | probes

    def _probe(self, features: dict[int, Tensor], batch: Batch) -> TaskOutput:
        label_BT = batch.frame_labels()
        of_class_B = torch.isin(
            batch.source_B, torch.tensor(self.labels.sources, device=batch.source_B.device)
        )
        label_BT = label_BT.where(of_class_B[:, None], -1)
        label_S = label_BT.flatten() if self.labels.is_image else label_BT[:, 0]
        row_K = (label_S >= 0).nonzero()[:, 0]
        if len(row_K) == 0:
            return TaskOutput(torch.zeros((), device=label_S.device), {})
        # fp32, as probes on frozen features compute.
        with torch.autocast(label_S.device.type, enabled=False):
            layers = {
                layer: self._layer(x_BLD.detach().reshape(len(label_S), -1, x_BLD.shape[-1])[row_K])
                for layer, x_BLD in features.items()
            }
            output: TaskOutput = self.bank(LabelledFeatures(layers, label_S[row_K]))
        losses_P = output.metrics["loss"]
        metrics = {
            "accuracy": output.metrics["accuracy"],
            "probe_loss": Mean(losses_P.total.sum(), losses_P.count.sum()),
        }
        return TaskOutput(output.loss * (len(row_K) / len(label_S)), metrics)

    def _layer(self, x_KLD: Tensor) -> LayerFeatures:
        x_KLD = token_norm(x_KLD)
        var_KD, mean_KD = torch.var_mean(x_KLD, dim=1, correction=0)
        tokens_KLD = x_KLD if self._needs_tokens else None
        return LayerFeatures(mean_KD, var_KD, x_KLD.shape[1], tokens_KLD)
