"""What a recipe says of a task. No torch here."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from toto.heads.config import HEADS, AttentionConfig, AverageConfig, HeadConfig
from toto.registry import Component, Registry

__all__ = ["TASKS", "DvaeTaskConfig", "NextTokenConfig", "ProbeBankConfig", "TaskConfig"]

TASKS: Registry[TaskConfig] = Registry("task", builtins="toto.tasks.config")


class TaskConfig(Component):
    """Base of every task's Config."""

    verb: ClassVar[str]
    """The verb whose recipes may name the task."""


@TASKS.register("next_token")
class NextTokenConfig(TaskConfig):
    """Predict the next token: cross-entropy for codes, squared error for patches (paper §3.1)."""

    verb: ClassVar[str] = "train"


@TASKS.register("dvae")
class DvaeTaskConfig(TaskConfig):
    """Train a dVAE: logit-Laplace reconstruction, KL to uniform, Gumbel-softmax relaxation.

    The defaults are those of Ramesh et al. 2021, App. A.2, for millions of steps; both ramps are
    half a cosine. `usage_weight` and the two gains are ours: with them thousands of steps suffice.
    """

    verb: ClassVar[str] = "tokenizer"

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
