"""`toto finetune`: a trained run's recipe, changed in resolution, length or RoPE base, trained on.

For now the loss is the next token's alone; probes beside it come with labelled fine-tuning.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import Any

from toto.errors import UserError
from toto.jobs.console import say
from toto.jobs.history import Asked
from toto.jobs.train import run_training
from toto.jobs.trained import import_all, newest_finetuning, on_any_machine, resolve_run
from toto.recipe.overrides import apply_override
from toto.recipe.reader import check_recipe
from toto.recipe.schemas import TrainRecipe
from toto.sequence import SequenceLayout
from toto.training.launch import find_launch

__all__ = ["FinetuneRequest", "finetune_recipe", "start_finetuning"]

# The paper fine-tunes at 6e-5 after a peak of 3e-4 (§3.2, §4.2).
LR_RATIO = 0.2
STEPS_RATIO = 0.1


@dataclass(frozen=True)
class FinetuneRequest:
    """The command's arguments; None keeps what the run has, or follows from the others."""

    run: str | None
    resolution: str | None
    frames: int | None
    rope_base: float | None
    steps: int | None
    overrides: tuple[str, ...]
    output: str | None
    resume: bool
    imports: tuple[str, ...]


def start_finetuning(request: FinetuneRequest) -> None:
    """Find the run, make the recipe, say what changes, train.

    Raises:
        UserError: no such run, or an argument that does not fit it.
    """
    import_all(request.imports)
    if request.resume and request.run is None:
        request = _resumed(request)
    trained = resolve_run(request.run)
    recipe = finetune_recipe(trained.recipe, str(trained.checkpoint), request)
    layout = recipe.layout
    _say(f"fine-tuning {trained.checkpoint}, step {trained.meta.step}")
    _say("next-token loss only, no probes: labelled fine-tuning is not there yet")
    _say(
        f"{layout.frames} frames × {layout.height} × {layout.width} tokens = "
        f"{layout.num_visual:,} a sequence, where {trained.recipe.layout.num_visual:,} were trained"
    )
    asked = Asked(str(trained.checkpoint), request.overrides)
    run_training(recipe, resume=request.resume, asked=asked)


def _resumed(request: FinetuneRequest) -> FinetuneRequest:
    """A bare `--resume` means the newest fine-tuning, and RUN is what that one began from."""
    newest = newest_finetuning()
    _say(f"going on with the newest fine-tuning: {newest.checkpoint}")
    output = request.output or str(newest.run)
    return replace(request, run=newest.recipe.init_from, output=output)


def _say(text: str) -> None:
    """On the first rank alone; the ranks have not met yet."""
    if find_launch(os.environ).rank == 0:
        say(text)


def finetune_recipe(trained: TrainRecipe, checkpoint: str, request: FinetuneRequest) -> TrainRecipe:
    """The recipe of a fine-tuning: the trained one with what the request changes.

    Without `frames`, a sequence keeps as many as fit the trained number of visual tokens (4096
    tokens: 16 frames at 16×16, 4 at 32×32), at least one.

    Raises:
        UserError: a resolution that the tokenizer does not have.
        RecipeError: the changed recipe is impossible.
    """
    training = on_any_machine(trained.training)
    raw: dict[str, Any] = trained.model_copy(update={"training": training}).model_dump(mode="json")
    old = trained.layout
    layout = _changed_layout(trained, request)
    raw["name"] = f"{trained.name}-finetune"
    raw["title"] = f"{trained.name} at {layout.height}×{layout.width} tokens"
    raw["output"] = request.output or f"{trained.output}-finetune"
    raw["init_from"] = checkpoint
    raw["clip"]["frames"] = layout.frames
    raw["clip"]["resolution"] = trained.clip.resolution * layout.height // old.height
    if (layout.height, layout.width) != (old.height, old.width):
        # The token shards of the run hold the old grid.
        raw["data"]["tokens"] = "in_run"
    if request.rope_base is not None:
        if "rope_base" not in raw["backbone"]:
            raise UserError(f"--rope-base: backbone {raw['backbone']['name']} has no RoPE")
        raw["backbone"]["rope_base"] = request.rope_base
    steps = request.steps or max(round(trained.training.steps * STEPS_RATIO), 2)
    sequences = max(trained.training.batch_tokens // layout.num_visual, 1)
    raw["training"] |= {
        "steps": steps,
        "batch_tokens": sequences * layout.num_visual,
        "micro_batch": min(trained.training.micro_batch, sequences),
    }
    raw["schedule"]["warmup_steps"] = steps // 10
    raw["optimizer"]["lr"] = trained.optimizer.lr * LR_RATIO
    for override in request.overrides:
        apply_override(raw, override, "toto finetune")
    recipe = check_recipe(raw, "toto finetune")
    assert isinstance(recipe, TrainRecipe)
    return recipe


def _changed_layout(trained: TrainRecipe, request: FinetuneRequest) -> SequenceLayout:
    old = trained.layout
    height, width = old.height, old.width
    if request.resolution is not None:
        height, width = _parse_grid(request.resolution)
        pixels = trained.clip.resolution * height / old.height
        fits = pixels.is_integer()
        try:
            fits = fits and trained.tokenizer.grid(int(pixels)) == (height, width)
        except ValueError:
            fits = False
        if not fits:
            raise UserError(
                f"--resolution {request.resolution}: the run has {old.height}x{old.width} tokens "
                f"at {trained.clip.resolution} px, and no number of pixels gives that grid. "
                f"{2 * old.height}x{2 * old.width} is one that works"
            )
    frames = request.frames or max(old.num_visual // (height * width), 1)
    return SequenceLayout(frames, height, width)


def _parse_grid(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise UserError(f"--resolution {text}: write the token grid, for example 32x32")
    return int(match[1]), int(match[2])
