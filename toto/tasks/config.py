"""What a recipe says of a task. No torch here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from toto.heads.config import HEADS, AttentionConfig, AverageConfig, HeadConfig
from toto.registry import Component, Config, Registry
from toto.tokenizers.config import DvaeConfig

if TYPE_CHECKING:
    from toto.model import AutoregressiveModel
    from toto.tasks.next_token import ModelTask
    from toto.tasks.perceptual import FeatureNetwork
    from toto.tasks.tokenizer import TokenizerTask
    from toto.tokenizers.base import Tokenizer

__all__ = [
    "FEATURE_NETWORKS",
    "TASKS",
    "ClassifyConfig",
    "DvaeFeaturesConfig",
    "DvaeTaskConfig",
    "FeatureNetworkConfig",
    "Labels",
    "ModelParts",
    "ModelTaskConfig",
    "NextTokenConfig",
    "NextTokenProbesConfig",
    "ProbeBankConfig",
    "ProbesConfig",
    "TaskConfig",
    "Term",
    "TokenizerTaskConfig",
    "VqganTaskConfig",
]

TASKS: Registry[TaskConfig] = Registry("task", builtins="toto.tasks.config")
FEATURE_NETWORKS: Registry[FeatureNetworkConfig] = Registry(
    "feature network", builtins="toto.tasks.config"
)


class TaskConfig(Component):
    """Base of every task's Config."""

    verb: ClassVar[str]
    """The verb whose recipes may name the task."""
    compiles: ClassVar[bool] = False
    """Whether the task has blocks to compile; without, `training.compile` is settled as off."""

    @property
    def micro_batch_effect(self) -> str | None:
        """Why the size of micro-batches changes results; None where it only changes rounding.

        A run of such a task is not resumed with another `training.micro_batch`.
        """
        return None


@dataclass(frozen=True)
class Labels:
    """What the sources that a task learns labels from have in common.

    Attributes:
        sources: their numbers in the mixture.
        num_classes: labels are 0..num_classes-1.
        is_image: each frame of a sequence is a picture with a class of its own; else a clip has
            one.
    """

    sources: tuple[int, ...]
    num_classes: int
    is_image: bool


@dataclass(frozen=True)
class ModelParts:
    """What the task of a model is made of.

    Attributes:
        model: what is trained.
        tokenizer: of its inputs.
        target_tokenizer: of what it predicts; None where the inputs are the targets.
        num_sources: of the mixture.
        labels: of the sources that `ModelTaskConfig.labelled` names; None where it names none.
    """

    model: AutoregressiveModel
    tokenizer: Tokenizer
    target_tokenizer: Tokenizer | None
    num_sources: int
    labels: Labels | None


class ModelTaskConfig(TaskConfig, ABC):
    """Base of the tasks that train a model on the tokens of pictures and videos."""

    verb: ClassVar[str] = "train"
    compiles: ClassVar[bool] = True
    beside: ClassVar[str | None] = None
    """What the names of weights begin with that checkpoints hold beside the model's."""

    def labelled(self, sources: Sequence[str]) -> tuple[str, ...]:
        """Those of the mixture's sources whose labels the task learns from."""
        return ()

    @abstractmethod
    def build(self, parts: ModelParts) -> ModelTask:
        """Make the task."""


@TASKS.register("next_token")
class NextTokenConfig(ModelTaskConfig):
    """Predict the next token: cross-entropy for codes, squared error for patches (paper §3.1)."""

    def build(self, parts: ModelParts) -> ModelTask:
        """See `ModelTaskConfig.build`."""
        return _next_token_task(parts)


class ProbesConfig(Config):
    """The probes that are trained beside a model: one at every layer for each choice of these."""

    sources: tuple[str, ...] = Field(
        min_length=1, description="labelled sources of the mixture, which share their classes"
    )
    heads: tuple[Annotated[HeadConfig, HEADS], ...] = Field(
        (AverageConfig(), AttentionConfig()), min_length=1, description="poolings, each once"
    )
    learning_rates: tuple[PositiveFloat, ...] = Field(
        (1e-3, 3e-3),
        min_length=1,
        description="peaks, each a probe of its own; they follow the schedule of the run",
    )

    @model_validator(mode="after")
    def _check_unique(self) -> Self:
        _require_unique(self, "sources", "heads", "learning_rates")
        return self

    def bank(self) -> ProbeBankConfig:
        """Their bank; normed features go in, so that nothing depends on the batch."""
        return ProbeBankConfig(
            heads=self.heads, learning_rates=self.learning_rates, batch_norm=False
        )


@TASKS.register("next_token_probes")
class NextTokenProbesConfig(ModelTaskConfig):
    """Predict the next token, and train probes at every layer beside it (paper §4.2).

    Probes read the layers without a gradient to them: the model is trained as without probes.
    """

    beside: ClassVar[str | None] = "probes."

    probes: ProbesConfig | None = Field(description="null: no labels, next-token loss only")

    def labelled(self, sources: Sequence[str]) -> tuple[str, ...]:
        """Those that the probes name."""
        return () if self.probes is None else self.probes.sources

    def build(self, parts: ModelParts) -> ModelTask:
        """See `ModelTaskConfig.build`."""
        from toto.tasks.finetune import NextTokenProbesTask

        if self.probes is None or parts.labels is None:
            return _next_token_task(parts)
        return NextTokenProbesTask(
            parts.model, parts.tokenizer, parts.target_tokenizer,
            num_sources=parts.num_sources, labels=parts.labels, probes=self.probes,
        )  # fmt: skip


@TASKS.register("classify")
class ClassifyConfig(ModelTaskConfig):
    """Tell the classes apart, the whole model trained for it (paper Table 13, §A.2 and §A.3)."""

    beside: ClassVar[str | None] = "classifier."

    layer: int = Field(
        -1, description="whose features are pooled; 0 is the embedding, -1 the last block"
    )
    head: Annotated[HeadConfig, HEADS] = Field(AverageConfig(), description="pooling")
    label_smoothing: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of the target that is spread over all classes"
    )
    mixup: NonNegativeFloat = Field(
        0.0, description="α of Beta(α, α), by which pairs of clips are mixed; 0: none"
    )
    drop_path: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="how often each branch of the last block is left out in training; those of "
        "blocks before it less",
    )

    @property
    def micro_batch_effect(self) -> str | None:
        """Mixup pairs clips, and both it and dropped paths draw numbers, in each micro-batch."""
        if self.mixup:
            return "task.mixup mixes the clips of a micro-batch"
        return "task.drop_path draws numbers for each micro-batch" if self.drop_path else None

    def labelled(self, sources: Sequence[str]) -> tuple[str, ...]:
        """All."""
        return tuple(sources)

    def build(self, parts: ModelParts) -> ModelTask:
        """See `ModelTaskConfig.build`."""
        from toto.tasks.classify import ClassifyTask

        assert parts.labels is not None
        if self.drop_path:
            parts.model.backbone.drop_paths(self.drop_path)
        return ClassifyTask(
            parts.model, parts.tokenizer, parts.target_tokenizer,
            num_classes=parts.labels.num_classes, config=self,
        )  # fmt: skip


def _next_token_task(parts: ModelParts) -> ModelTask:
    from toto.tasks.next_token import NextTokenTask

    return NextTokenTask(
        parts.model, parts.tokenizer, parts.target_tokenizer, num_sources=parts.num_sources
    )


@dataclass(frozen=True)
class Term:
    """How people call a metric of a task, and what it is measured in, where that has a name."""

    title: str
    unit: str = ""


class TokenizerTaskConfig(TaskConfig, ABC):
    """Base of the tasks that train a tokenizer."""

    verb: ClassVar[str] = "tokenizer"
    trains: ClassVar[str]
    """The name of the tokenizer that the task trains."""
    terms: ClassVar[Mapping[str, Term]] = {}
    """Of the metrics of the task; one that is not here goes by its own name."""
    against_collapse: ClassVar[str] = ""
    """What to set when nearly all tokens are the same few codes, as a sentence."""

    @abstractmethod
    def build(self, tokenizer: Tokenizer) -> TokenizerTask:
        """Make the task for a tokenizer of that name."""


@TASKS.register("dvae")
class DvaeTaskConfig(TokenizerTaskConfig):
    """Train a dVAE: logit-Laplace reconstruction, KL to uniform, Gumbel-softmax relaxation.

    The defaults are those of Ramesh et al. 2021, App. A.2, for millions of steps; both ramps are
    half a cosine. `usage_weight` and the two gains are ours: with them thousands of steps suffice.
    Of the gains, that of the codes is not 1 by default.
    """

    trains: ClassVar[str] = "dvae"
    against_collapse: ClassVar[str] = (
        "Raise task.usage_weight (30) and task.initial_logit_gain (64), and leave "
        "task.initial_code_gain at its default"
    )
    terms: ClassVar[Mapping[str, Term]] = {
        "loss": Term("Loss", "nats/value"),
        "nll": Term("Reconstruction, −ln p", "nats/value"),
        "kl": Term("KL to uniform", "nats/token"),
    }

    kl_weight: NonNegativeFloat = Field(6.6, description="β at the end of its ramp from 0")
    kl_warmup_steps: PositiveInt = Field(5_000, description="steps of β's ramp")
    usage_weight: NonNegativeFloat = Field(
        0.0, description="of the KL of the batch's mean code distribution to uniform, beside β"
    )
    temperature_start: PositiveFloat = Field(1.0, description="τ of the relaxation at step 0")
    temperature_end: PositiveFloat = Field(1 / 16, description="τ at the end of its ramp")
    temperature_steps: PositiveInt = Field(150_000, description="steps of τ's ramp")
    initial_logit_gain: PositiveFloat = Field(
        1.0, description="multiplies the fresh weights that make the logits"
    )
    initial_code_gain: PositiveFloat | None = Field(
        None,
        description="multiplies the fresh weights that read the codes; none: √V of V codes, which "
        "gives the vector of each code unit variance. 1 is the published start",
    )

    @property
    def micro_batch_effect(self) -> str | None:
        """The KL of the mixture is that of a micro-batch, and Gumbel noise is drawn for each."""
        if self.usage_weight:
            return "task.usage_weight weighs the mean code distribution of a micro-batch"
        return "the noise of the relaxed codes is drawn for each micro-batch"

    def build(self, tokenizer: Tokenizer) -> TokenizerTask:
        """See `TokenizerTaskConfig.build`."""
        from toto.tasks.dvae import DvaeTask
        from toto.tokenizers.dvae import Dvae

        assert isinstance(tokenizer, Dvae)
        return DvaeTask(tokenizer, self)


class FeatureNetworkConfig(Component, ABC):
    """Base of the networks in whose features pictures can be compared."""

    @abstractmethod
    def build(self) -> FeatureNetwork:
        """Make the network and load its weights."""


@FEATURE_NETWORKS.register("dvae_features")
class DvaeFeaturesConfig(FeatureNetworkConfig):
    """The groups of a dVAE's encoder: features that no label has shaped."""

    dvae: DvaeConfig = Field(description="with weights")

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.dvae.missing_weights:
            raise ValueError(f"no weights. {self.dvae.missing_weights}")
        return self

    def build(self) -> FeatureNetwork:
        """Make the dVAE's encoder."""
        from toto.tasks.perceptual import DvaeFeatures

        return DvaeFeatures(self.dvae)


@TASKS.register("vqgan")
class VqganTaskConfig(TokenizerTaskConfig):
    """Train a VQGAN: L1, codebook, and a patch discriminator from its start step on.

    The defaults are taming-transformers' for ImageNet, but for the perceptual term, which is off:
    its features came of labels there (the Toto paper, §2, objects to that).
    """

    trains: ClassVar[str] = "vqgan"
    against_collapse: ClassVar[str] = "Set task.restart_after (100), or take fewer codes"
    terms: ClassVar[Mapping[str, Term]] = {
        "loss": Term("Loss, its adversarial part left out"),
        "l1": Term("Mean absolute error", "of a range of 2"),
        "codebook": Term("Codebook and commitment"),
        "generator": Term("Generator", "−score"),
        "discriminator": Term("Discriminator", "hinge loss"),
        "adaptive_weight": Term("Adaptive weight of the generator"),
    }

    codebook_weight: NonNegativeFloat = Field(
        0.25, description="of the pull of codes towards the encoder's vectors"
    )
    commitment_weight: NonNegativeFloat = Field(
        1.0, description="of the pull of the encoder's vectors towards codes"
    )
    perceptual: Annotated[FeatureNetworkConfig, FEATURE_NETWORKS] | None = Field(
        None, description="the network whose features are compared; none: L1 alone"
    )
    perceptual_weight: NonNegativeFloat = Field(1.0, description="of the distance of features")
    discriminator_start: NonNegativeInt = Field(250_001, description="its first step")
    discriminator_weight: NonNegativeFloat = Field(
        0.8, description="of the generator's loss, times the adaptive weight"
    )
    discriminator_width: PositiveInt = Field(
        64, description="channels after the first of its convolutions, then 2, 4, 8 times"
    )
    discriminator_layers: PositiveInt = Field(3, description="halvings of the resolution")
    restart_after: PositiveInt | None = Field(
        None, description="micro-batches without use until a code is placed anew; none: never"
    )

    @property
    def micro_batch_effect(self) -> str | None:
        """The discriminator's BatchNorm and the adaptive weight see one micro-batch at a time."""
        if self.restart_after is not None:
            return "task.restart_after counts micro-batches"
        return "the discriminator's BatchNorm is over a micro-batch"

    @property
    def smallest_resolution(self) -> int:
        """Side in pixels of the smallest pictures that leave the discriminator a patch to judge.

        Its last two convolutions take a pixel off each.
        """
        pixels_a_patch: int = 2**self.discriminator_layers
        return 3 * pixels_a_patch

    def build(self, tokenizer: Tokenizer) -> TokenizerTask:
        """See `TokenizerTaskConfig.build`."""
        from toto.tasks.vqgan import VqganTask
        from toto.tokenizers.vqgan import Vqgan

        assert isinstance(tokenizer, Vqgan)
        return VqganTask(tokenizer, self)


@TASKS.register("probe_bank")
class ProbeBankConfig(TaskConfig):
    """Train every layer × pooling × learning rate × decay × seed together (paper §3.5)."""

    verb: ClassVar[str] = "probe"

    heads: tuple[Annotated[HeadConfig, HEADS], ...] = Field(
        (AverageConfig(), AttentionConfig()), min_length=1, description="poolings, each once"
    )
    learning_rates: tuple[PositiveFloat, ...] = Field(
        (1e-3, 3e-3, 1e-2), min_length=1, description="peaks, each a probe of its own"
    )
    weight_decays: tuple[NonNegativeFloat, ...] = Field(
        (0.0,), min_length=1, description="on matrices alone, each a probe of its own"
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field(
        (0,), min_length=1, max_length=31, description="of initial weights, each a probe of its own"
    )
    batch_norm: bool = Field(
        True,
        description="BatchNorm without affine, where each head has it: on the pooled vector of "
        "average pooling (MAE), on the tokens in front of attention (AIM)",
    )

    @model_validator(mode="after")
    def _check_unique(self) -> Self:
        _require_unique(self, "heads", "learning_rates", "weight_decays", "seeds")
        return self


def _require_unique(config: Config, *names: str) -> None:
    for name in names:
        values: tuple[object, ...] = getattr(config, name)
        if any(value in values[:index] for index, value in enumerate(values)):
            raise ValueError(f"{name} names one twice; name each once")
