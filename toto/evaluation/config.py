"""What a recipe says of an evaluation. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from toto.tasks.config import ProbeBankConfig

__all__ = ["ProbeSettings"]


class ProbeSettings(ProbeBankConfig):
    """Which probes stand at which layers, and how they are trained (paper §3.5)."""

    layers: Literal["all"] | tuple[int, ...] = Field(
        "all", description="0 is the embedding, k the output of block k, -1 the last block"
    )
    epochs: PositiveInt = Field(20, description="passes over the training features")
    batch_size: PositiveInt = Field(32, description="samples a step")
    feature_dtype: Literal["bf16", "fp32"] = Field(
        "bf16", description="what single tokens are rounded to; probes compute in fp32"
    )
    cache_gb: NonNegativeFloat = Field(
        4.0, description="10⁹ bytes of the model's device that cached features may take"
    )
    data_seed: NonNegativeInt = Field(
        0, lt=2**63, description="of the order of samples, which all probes share"
    )
    frames: PositiveInt | None = Field(
        None, description="frames of a labelled clip; None: as many as the model was trained on"
    )
    max_samples: PositiveInt | None = Field(
        None, description="training samples, drawn at random; None: all"
    )
