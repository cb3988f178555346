"""What a recipe says of a training run. No torch here. Defaults are the paper's (§3.2, P§4)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from toto.registry import Config

__all__ = ["DeepSpeedConfig", "OptimizerConfig", "ScheduleConfig", "TrainingConfig"]

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class OptimizerConfig(Config):
    """AdamW (Loshchilov & Hutter 2017); no decay on norms, biases and embeddings."""

    lr: PositiveFloat = Field(3e-4, description="peak learning rate")
    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.95), description="decay rates of the running means of gradient and squared gradient"
    )
    eps: PositiveFloat = Field(1e-8, description="added to the root of the squared gradient's mean")
    weight_decay: NonNegativeFloat = Field(
        0.1, description="decoupled, times the learning rate; on matrices alone"
    )
    grad_clip: PositiveFloat = Field(
        1.0,
        description="largest norm of the whole gradient; a VQGAN's discriminator has its own",
    )
    layer_decay: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="the rate of each layer over that of the next higher one; readout and last "
        "norm have the whole rate, the embedding the least",
    )


class ScheduleConfig(Config):
    """Linear warm-up, then cosine down to `final_fraction` of the peak."""

    warmup_steps: NonNegativeInt = Field(2_000, description="steps of the linear rise from 0")
    final_fraction: float = Field(
        0.1, ge=0.0, le=1.0, description="learning rate at the last step over its peak"
    )


class DeepSpeedConfig(Config):
    """How DeepSpeed shares weights, gradients and optimizer state among the ranks."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        1,
        description="what each rank holds only its part of: 0 nothing, 1 the optimizer's state, "
        "2 the gradients too, 3 the weights too",
    )
    overlap_comm: bool = Field(
        True,
        description="send gradients while the backward pass computes the next ones; DeepSpeed does "
        "not at stage 0",
    )
    bucket_elements: PositiveInt = Field(
        100_000_000,
        description="elements sent together; each bucket needs memory. Gradients go in larger ones "
        "at stage 0",
    )
    prefetch_elements: NonNegativeInt = Field(
        50_000_000, description="stage 3: elements of weights fetched ahead"
    )
    persistent_elements: NonNegativeInt = Field(
        100_000, description="stage 3: weights of fewer elements stay whole on every rank"
    )
    offload_optimizer: bool = Field(
        False, description="keep and step the optimizer's state in the memory of the CPU"
    )
    extra: dict[str, Any] = Field(
        default_factory=dict,
        description="other settings of DeepSpeed by its own names, which DeepSpeed checks",
    )


class TrainingConfig(Config):
    """Length, batch and machine of a run."""

    steps: PositiveInt = Field(description="optimizer steps")
    batch_tokens: PositiveInt = Field(2**20, description="visual tokens a step")
    micro_batch: PositiveInt = Field(1, description="sequences in one forward and backward pass")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 autocast where the device has it; resolved before the run"
    )
    compile: bool = Field(
        True, description="torch.compile by block; off where there is no C++ compiler"
    )
    recompute: bool = Field(
        False,
        description="keep only what goes into each block, and compute the rest again in the "
        "backward pass: less memory for more time",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: the GPU where there is one; settled before the run"
    )
    engine: Literal["auto", "local", "deepspeed"] = Field(
        "auto", description="auto: local on one rank, deepspeed on several; settled before the run"
    )
    deepspeed: DeepSpeedConfig = Field(
        DeepSpeedConfig(), description="read by `engine: deepspeed` alone"
    )
    log_every: PositiveInt = Field(10, description="steps between two lines of metrics.jsonl")
    eval_every: PositiveInt = Field(500, description="steps between two evaluations")
    eval_sequences: PositiveInt = Field(64, description="validation sequences of each source")
    baselines: bool = Field(
        True,
        description="count training tokens before the first step, so that each evaluation of a "
        "model that predicts codes shows what the unigram and copying the last frame lose",
    )
    save_every: PositiveInt = Field(500, description="steps between two checkpoints")
    keep: PositiveInt = Field(2, description="checkpoints kept, the newest")
    keep_every: PositiveInt | None = Field(
        None, description="checkpoints of every so many steps are kept for good, besides"
    )
    background_save: bool = Field(
        True,
        description="copy a checkpoint to host memory, as much again as weights and optimizer "
        "state, and write it behind the next steps; false: the run waits",
    )
    timeout_minutes: PositiveFloat = Field(
        30.0, description="how long a rank waits for another within a step before the run ends"
    )
