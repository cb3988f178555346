"""What a recipe says of probes: a bank, how it is trained, and what it sees. No torch here."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from toto.tasks.config import ProbeBankConfig

__all__ = ["FREE_SETTINGS", "ProbeSettings"]

FREE_SETTINGS = {"read_batch", "cache", "cache_gb"}
"""How the work is done: no figure depends on them."""


class ProbeSettings(ProbeBankConfig):
    """Which probes stand at which layers, how they are trained and what they see (paper §3.5)."""

    layers: Literal["all"] | tuple[int, ...] = Field(
        "all", description="0 is the embedding, k the output of block k, -1 the last block"
    )
    epochs: PositiveInt = Field(20, description="passes over the training features")
    warmup_epochs: NonNegativeFloat = Field(
        0.0, description="of a linear rise of the learning rate from 0, before the cosine to 0"
    )
    batch_size: PositiveInt = Field(32, description="samples a step")
    optimizer: Literal["adamw", "lars"] = Field(
        "adamw", description="`lars` is that of MAE's linear probing, for large batches"
    )
    data_seed: NonNegativeInt = Field(
        0,
        lt=2**63,
        description="of the order of samples, augmentation and max_samples, for all probes alike",
    )
    max_samples: PositiveInt | None = Field(
        None, description="training samples, drawn at random; None: all"
    )
    augmentation: Literal["none", "random_resized_crop_flip"] = Field(
        "none", description="of training samples, drawn anew in each epoch"
    )
    resolution: PositiveInt | None = Field(
        None, description="side of the square crop in pixels; None: as trained"
    )
    frames: PositiveInt | None = Field(
        None, description="of a labelled clip; None: as many as keep the trained context's length"
    )
    rope_base: PositiveFloat | None = Field(None, description="RoPE's base; None: as trained")
    attention: Literal["causal", "full"] | None = Field(
        None, description="who reads whom in a sequence; None: as trained"
    )
    context: Literal["single", "packed"] = Field(
        "single",
        description="pictures alone in their sequence, or as many in one as in training, "
        "strangers in an order drawn at random",
    )
    test_clips: PositiveInt = Field(
        1, description="of a validation video, spread over it; softmax scores are averaged"
    )
    test_crops: Literal[1, 3] = Field(
        1, description="squares of each clip or picture: the centre, or both ends too"
    )
    read_batch: PositiveInt = Field(32, description="samples in one pass of the model")
    feature_dtype: Literal["bf16", "fp32"] = Field(
        "bf16", description="what single tokens are rounded to; probes compute in fp32"
    )
    cache: Literal["memory", "disk", "none"] | None = Field(
        None,
        description="where training features are kept once read; None: in memory if they fit and "
        "nothing is augmented; disk: for later probes of the same features too",
    )
    cache_gb: NonNegativeFloat = Field(
        4.0, description="10⁹ bytes of the model's device that cached features may take"
    )

    @model_validator(mode="after")
    def _check_cache(self) -> Self:
        if self.augmentation != "none" and self.cache in ("memory", "disk"):
            raise ValueError(
                f"cache: {self.cache} keeps what was read once, and augmentation: "
                f"{self.augmentation} reads each sample anew in each epoch. Write cache: none, or "
                "augmentation: none"
            )
        return self

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} of {self.epochs} epochs leave none at the "
                "learning rate. Take fewer"
            )
        return self
