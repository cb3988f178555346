"""What a recipe says of a task. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from toto.registry import Component, Registry

__all__ = ["TASKS", "DvaeTaskConfig", "NextTokenConfig", "ProbeBankConfig", "TaskConfig"]

TASKS: Registry[TaskConfig] = Registry("task", builtins="toto.tasks.config")


class TaskConfig(Component):
    """Base of every task's Config."""


@TASKS.register("next_token")
class NextTokenConfig(TaskConfig):
    """Predict the next token: cross-entropy for codes, squared error for patches (paper §3.1)."""


@TASKS.register("dvae")
class DvaeTaskConfig(TaskConfig):
    """Train a dVAE: reconstruction, KL to the uniform prior, Gumbel-softmax relaxation.

    Shapes of the schedules follow Ramesh et al. 2021, App. A.2; their lengths scale with the run.
    """

    likelihood: Literal["logit_laplace"] = "logit_laplace"
    kl_weight: NonNegativeFloat = Field(6.6, description="β at the end of its ramp")
    kl_warmup_steps: PositiveInt = 5_000
    temperature_start: PositiveFloat = 1.0
    temperature_end: PositiveFloat = 1 / 16
    temperature_steps: PositiveInt = 150_000


@TASKS.register("probe_bank")
class ProbeBankConfig(TaskConfig):
    """Train every layer × pooling × learning rate together on frozen features (paper §3.5)."""

    batch_norm: bool = Field(True, description="BatchNorm without affine in front of the pooling")
