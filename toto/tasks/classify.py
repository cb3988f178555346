"""Full fine-tuning (paper Table 13, §A.2, §A.3): a class for every clip, by the whole model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from toto.tasks.finetune import ModelAndHeads, token_norm
from toto.tasks.next_token import Classifier, ModelTask, to_frames
from toto.tasks.probe_bank import CLASSIFIER_STD
from toto.training.task import Mean, TaskOutput

if TYPE_CHECKING:
    from toto.backbones.base import ParamRole
    from toto.data.batch import Batch
    from toto.heads.config import HeadConfig
    from toto.model import AutoregressiveModel
    from toto.tasks.config import ClassifyConfig
    from toto.tokenizers.base import Tokenizer

__all__ = ["ClassifyTask", "PooledClassifier", "mixed_up", "mixed_up_loss"]

CLASSIFIER = "classifier"


class PooledClassifier(nn.Module):
    """A pooling head on normed tokens, and a linear classifier.

    Args:
        head: the pooling.
        width: D of the features.
        num_classes: of the labels.
    """

    def __init__(self, head: HeadConfig, width: int, num_classes: int) -> None:
        super().__init__()
        self.head = head.build(width)
        self.linear = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=CLASSIFIER_STD)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Features of a layer → logits, fp32 `[B, classes]`."""
        logits_BC: Tensor = self.linear(self.head(token_norm(x_BLD))).float()
        return logits_BC


class ClassifyTask(ModelTask):
    """The class of each sequence, which is one picture or one clip.

    Metrics: "loss", cross-entropy in nats, in training mode with mixup and label smoothing; and
    "accuracy", with one entry, which mixed labels leave out.

    Args:
        model: what is trained; of its weights those after the layer rest.
        tokenizer: the one the model was made for.
        target_tokenizer: the one of what the model predicted before; it takes no part.
        num_classes: labels are 0..num_classes-1, and every sequence has one.
        config: layer, pooling and what regularises.
    """

    def __init__(
        self,
        model: AutoregressiveModel,
        tokenizer: Tokenizer,
        target_tokenizer: Tokenizer | None = None,
        *,
        num_classes: int,
        config: ClassifyConfig,
    ) -> None:
        super().__init__(model, tokenizer, target_tokenizer)
        self.config = config
        self.classifier = PooledClassifier(config.head, model.backbone.config.width, num_classes)
        self._trained = ModelAndHeads(model, CLASSIFIER, self.classifier)

    @property
    def trainable(self) -> nn.Module:
        """The model and the classifier."""
        return self._trained

    @property
    def classifiers(self) -> tuple[Classifier, ...]:
        """The one; its rate is that of the run."""
        layer, depth = self.config.layer, self.model.backbone.config.num_layers
        return (Classifier(layer if layer >= 0 else depth + 1 + layer, self.config.head, None),)

    def forward(self, batch: Batch) -> TaskOutput:
        """See the class."""
        mixes = self.training and self.config.mixup > 0 and len(batch) > 1
        weight_B = torch.ones(len(batch), device=batch.label_B.device)
        if mixes:
            batch, weight_B = mixed_up(batch, self.config.mixup)
        frames = to_frames(self.tokenizer, batch)
        layer = self.config.layer
        features = self.model.features(frames, batch.is_image_B, [layer])
        logits_BC = self.classifier(features[layer])
        smoothing = self.config.label_smoothing if self.training else 0.0
        loss_B = mixed_up_loss(logits_BC, batch.label_B, weight_B, smoothing)
        count = torch.tensor(float(len(batch)), dtype=torch.float64, device=loss_B.device)
        metrics = {"loss": Mean(loss_B.detach().double().sum(), count)}
        if not mixes:
            hits = (logits_BC.argmax(-1) == batch.label_B).double().sum()
            metrics["accuracy"] = Mean(hits[None], count[None])
        return TaskOutput(loss_B.mean(), metrics)

    def num_targets(self, batch: Batch) -> int:
        """A class a sequence; padding has none."""
        return 0 if batch.padding else len(batch)

    def param_roles(self) -> dict[str, ParamRole]:
        """The model's; the classifier is readout, so that it has the whole rate under µP too."""
        roles: dict[str, ParamRole] = {
            f"{CLASSIFIER}.{name}": "readout" for name, _ in self.classifier.named_parameters()
        }
        return super().param_roles() | roles


def mixed_up(batch: Batch, alpha: float) -> tuple[Batch, Tensor]:
    """Pixels of each clip mixed with those of its mirror image in the batch (Zhang et al. 2018).

    Args:
        batch: pixels `BTCHW`; clip b meets clip B-1-b.
        alpha: of Beta(α, α), from which each clip draws its own weight.

    Returns:
        The batch with mixed pixels, rounded, and its labels as they were; and `weight_B`, the share
        of each clip's own pixels and label, fp32.
    """
    assert batch.pixels_BTCHW is not None, "codes cannot be mixed; the recipe is refused"
    own_BTCHW = batch.pixels_BTCHW.float()
    concentration = torch.tensor(alpha, device=own_BTCHW.device)
    weight_B = torch.distributions.Beta(concentration, concentration).sample((len(batch),))
    mixed_BTCHW = own_BTCHW.flip(0).lerp(own_BTCHW, weight_B.view(-1, 1, 1, 1, 1))
    return replace(batch, pixels_BTCHW=mixed_BTCHW.round().to(torch.uint8)), weight_B


def mixed_up_loss(logits_BC: Tensor, label_B: Tensor, weight_B: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy in nats to each clip's own label and that of its mirror image, by their shares.

    Args:
        logits_BC: fp32.
        label_B: int64 classes.
        weight_B: of the own label; 1 where nothing was mixed.
        smoothing: share of each target that is spread over all classes.
    """
    own_B, other_B = (
        cross_entropy(logits_BC, label, label_smoothing=smoothing, reduction="none")
        for label in (label_B, label_B.flip(0))
    )
    return other_B.lerp(own_B, weight_B)
