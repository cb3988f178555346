"""What a recipe says of a task. No torch here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
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
from toto.registry import Component, Registry
from toto.tokenizers.config import DvaeConfig

if TYPE_CHECKING:
    from toto.tasks.perceptual import FeatureNetwork
    from toto.tasks.tokenizer import TokenizerTask
    from toto.tokenizers.base import Tokenizer

__all__ = [
    "FEATURE_NETWORKS",
    "TASKS",
    "DvaeFeaturesConfig",
    "DvaeTaskConfig",
    "FeatureNetworkConfig",
    "NextTokenConfig",
    "ProbeBankConfig",
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


@TASKS.register("next_token")
class NextTokenConfig(TaskConfig):
    """Predict the next token: cross-entropy for codes, squared error for patches (paper §3.1)."""

    verb: ClassVar[str] = "train"
    compiles: ClassVar[bool] = True


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

    @abstractmethod
    def build(self, tokenizer: Tokenizer) -> TokenizerTask:
        """Make the task for a tokenizer of that name."""


@TASKS.register("dvae")
class DvaeTaskConfig(TokenizerTaskConfig):
    """Train a dVAE: logit-Laplace reconstruction, KL to uniform, Gumbel-softmax relaxation.

    The defaults are those of Ramesh et al. 2021, App. A.2, for millions of steps; both ramps are
    half a cosine. `usage_weight` and the two gains are ours: with them thousands of steps suffice.
    """

    trains: ClassVar[str] = "dvae"
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
    initial_code_gain: PositiveFloat = Field(
        1.0, description="multiplies the fresh weights that read the codes; √V or so"
    )

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
    perceptual_weight: NonNegativeFloat = 1.0
    discriminator_start: NonNegativeInt = Field(250_001, description="its first step")
    discriminator_weight: NonNegativeFloat = Field(
        0.8, description="of the generator's loss, times the adaptive weight"
    )
    discriminator_width: PositiveInt = 64
    discriminator_layers: PositiveInt = Field(3, description="halvings of the resolution")
    restart_after: PositiveInt | None = Field(
        None, description="micro-batches without use until a code is placed anew; none: never"
    )

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
    """Train every layer × pooling × learning rate together on frozen features (paper §3.5)."""

    verb: ClassVar[str] = "probe"

    heads: tuple[Annotated[HeadConfig, HEADS], ...] = Field(
        (AverageConfig(), AttentionConfig()), min_length=1, description="poolings, each once"
    )
    learning_rates: tuple[PositiveFloat, ...] = Field(
        (1e-3, 3e-3, 1e-2), min_length=1, description="peaks, each a probe of its own"
    )
    weight_decay: NonNegativeFloat = Field(0.0, description="AdamW's, on matrices alone")
    batch_norm: bool = Field(True, description="BatchNorm without affine in front of the pooling")

    @model_validator(mode="after")
    def _check_unique(self) -> Self:
        for name, values in (("heads", self.heads), ("learning_rates", self.learning_rates)):
            if any(value in values[:index] for index, value in enumerate(values)):
                raise ValueError(f"{name} names one twice; name each once")
        return self
