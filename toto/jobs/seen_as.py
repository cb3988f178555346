"""A trained run as an evaluation wants to see it: other pixels, positions or attention."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from toto.backbones.config import MaskConfig
from toto.errors import UserError
from toto.sequence import SequenceLayout

if TYPE_CHECKING:
    from typing import Literal

    from toto.backbones.config import BackboneConfig
    from toto.data.config import DataConfig
    from toto.jobs.trained import FoundRun
    from toto.recipe.schemas import TrainRecipe

__all__ = ["Seen", "seen_as"]


@dataclass(frozen=True)
class Seen:
    """What differs from the training; None: nothing.

    Attributes:
        resolution: side of the square crop in pixels.
        frames: of a sequence; None keeps the trained number of visual tokens, as far as it goes.
        rope_base: RoPE's.
        attention: who reads whom.
        data: what is read.
        pixels: tokens are to be made of pixels, not taken from the run's token shards.
    """

    resolution: int | None = None
    frames: int | None = None
    rope_base: float | None = None
    attention: Literal["causal", "full"] | None = None
    data: DataConfig | None = None
    pixels: bool = False


def seen_as(found: FoundRun, seen: Seen) -> FoundRun:
    """The run with its recipe changed so; the checkpoint fits it as before.

    Raises:
        UserError: the tokenizer has no such resolution, the backbone no RoPE or no such mask.
    """
    recipe = found.recipe
    resolution = seen.resolution or recipe.clip.resolution
    layout = _layout(recipe, resolution, seen.frames)
    data = seen.data or recipe.data
    if resolution != recipe.clip.resolution or seen.pixels:
        # The token shards of the run hold the old grid, of centre squares.
        data = data.model_copy(update={"tokens": "in_run"})
    changed = recipe.model_copy(
        update={
            "clip": recipe.clip.model_copy(
                update={"resolution": resolution, "frames": layout.frames}
            ),
            "data": data,
            "backbone": _backbone(recipe.backbone, seen.rope_base),
            "mask": _mask(recipe, seen.attention),
        }
    )
    return replace(found, recipe=changed)


def _layout(recipe: TrainRecipe, resolution: int, frames: int | None) -> SequenceLayout:
    try:
        height, width = recipe.tokenizer.grid(resolution)
    except ValueError as error:
        raise UserError(f"resolution {resolution}: {error}. Take another one") from error
    kept = max(recipe.layout.num_visual // (height * width), 1)
    return SequenceLayout(frames or kept, height, width)


def _backbone(backbone: BackboneConfig, rope_base: float | None) -> BackboneConfig:
    if rope_base is None:
        return backbone
    if "rope_base" not in type(backbone).model_fields:
        raise UserError(f"rope_base: backbone {backbone.registered_name} has no RoPE. Leave it out")
    return backbone.model_copy(update={"rope_base": rope_base})


def _mask(recipe: TrainRecipe, attention: Literal["causal", "full"] | None) -> MaskConfig:
    if attention is None:
        return recipe.mask
    if attention not in recipe.backbone.masks:
        raise UserError(
            f"attention: {recipe.backbone.registered_name} does not work under {attention}. It "
            f"takes {', '.join(recipe.backbone.masks)}"
        )
    return MaskConfig(name=attention)
