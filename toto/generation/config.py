"""How tokens are sampled. No torch here."""

from __future__ import annotations

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from toto.registry import Config

__all__ = ["SamplingConfig"]


class SamplingConfig(Config):
    """The filters that a token's distribution passes; the defaults leave it as the model gives it.

    In order: temperature, top-k, top-p (Holtzman et al. 2020, over what top-k left). The most
    probable token always remains, so `top_k: 1` is greedy decoding, and so is temperature 0.
    """

    temperature: NonNegativeFloat = Field(
        1.0, description="logits are divided by it; 0 takes the most probable token"
    )
    top_k: NonNegativeInt = Field(0, description="keep the k most probable tokens; 0 keeps all")
    top_p: PositiveFloat = Field(
        1.0, le=1.0, description="keep the fewest most probable tokens that hold this mass"
    )
