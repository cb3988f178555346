"""`toto finetune`: a trained run's recipe, changed, trained on: as in §4.2, or to tell classes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toto.data.clips import FrameList
from toto.data.decode import UndecodableError, decode_sample
from toto.errors import DataError, UserError, raised_by_all
from toto.jobs.console import say
from toto.jobs.history import Asked
from toto.jobs.labelled import labelled_together
from toto.jobs.sources import make_missing, named_sources, root_explained
from toto.jobs.train import run_training
from toto.jobs.trained import (
    import_all,
    newest_finetuning,
    on_any_machine,
    require_next_tokens,
    resolve_run,
)
from toto.recipe.overrides import apply_override
from toto.recipe.reader import check_recipe
from toto.recipe.schemas import TrainRecipe
from toto.sequence import SequenceLayout
from toto.tasks.config import ClassifyConfig, NextTokenConfig, NextTokenProbesConfig
from toto.training.launch import find_launch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toto.jobs.sources import Source
    from toto.jobs.trained import FoundRun

__all__ = ["FinetuneRequest", "finetune_recipe", "start_finetuning"]

# The paper fine-tunes at 6e-5 after a peak of 3e-4, with layer decay 0.9 (§3.2, §4.2).
LR_RATIO = 0.2
LAYER_DECAY = 0.9
STEPS_RATIO = 0.1

FinetuneTask = Literal["next_token_probes", "classify"]


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
    task: FinetuneTask = "next_token_probes"


def start_finetuning(request: FinetuneRequest) -> None:
    """Find the run and its labels, make the recipe, say what changes, train.

    Raises:
        UserError: no such run, or an argument that does not fit it.
        DataError: no labels to classify by.
    """
    import_all(request.imports)
    if request.resume and request.run is None:
        newest = newest_finetuning()
        _say(f"going on with the newest fine-tuning: {newest.checkpoint}")
        if _is_bare(request):
            recipe = newest.recipe.model_copy(update={"output": str(newest.run)})
            run_training(recipe, resume=True, asked=Asked(str(recipe.init_from)))
            return
        request = _resumed(request, newest)
    trained = resolve_run(request.run)
    if request.task != "classify" and not _learns_by_itself(trained.recipe):
        require_next_tokens(trained)
    checkpoint = str(trained.checkpoint)
    sources = _opened_sources(trained.recipe, checkpoint, request)
    labelled = _labelled_sources(sources, checkpoint, request)
    recipe = finetune_recipe(trained.recipe, checkpoint, request, labelled)
    _say(f"fine-tuning {trained.checkpoint}, step {trained.meta.step}")
    _say(_what_is_learned(recipe, labelled))
    if find_launch(os.environ).rank == 0:
        for line in _what_sequences_become(trained.recipe, recipe, sources):
            say(line)
    asked = Asked(checkpoint, request.overrides)
    run_training(recipe, resume=request.resume, asked=asked)


def _is_bare(request: FinetuneRequest) -> bool:
    """Whether nothing is asked of a fine-tuning but to go on."""
    asked = (request.resolution, request.frames, request.rope_base, request.steps, request.output)
    return set(asked) == {None} and not request.overrides and request.task == "next_token_probes"


def _resumed(request: FinetuneRequest, newest: FoundRun) -> FinetuneRequest:
    """RUN is what the newest fine-tuning began from; the other arguments are to be as before."""
    output = request.output or str(newest.run)
    classifies = isinstance(newest.recipe.task, ClassifyConfig)
    task: FinetuneTask = "classify" if classifies else request.task
    return replace(request, run=newest.recipe.init_from, output=output, task=task)


def _say(text: str) -> None:
    """On the first rank alone; the ranks have not met yet."""
    if find_launch(os.environ).rank == 0:
        say(text)


def _opened_sources(
    trained: TrainRecipe, checkpoint: str, request: FinetuneRequest
) -> list[Source]:
    """Open the sources of the run, or of what `--set data...` puts in their place.

    Raises:
        DataError: a dataset is missing.
    """
    of_data = tuple(text for text in request.overrides if re.match(r"data[.=]", text))
    plain = replace(request, overrides=of_data, task="next_token_probes")
    recipe = finetune_recipe(trained, checkpoint, plain, [])
    if find_launch(os.environ).world == 1:  # several would make them side by side
        make_missing(recipe)
    with root_explained(recipe.data.root, Path(checkpoint).parent.parent):
        return named_sources(recipe)


def _labelled_sources(
    sources: Sequence[Source], checkpoint: str, request: FinetuneRequest
) -> list[Source]:
    """Return the sources whose labels go together.

    Raises:
        DataError: there are none, and classes are to be learned.
    """
    labelled, notes = labelled_together(sources)
    for note in notes:
        _say(note)
    if request.task == "classify" and not labelled:
        raise raised_by_all(
            DataError(
                f"--classify: no source of {checkpoint} has labels "
                f"({', '.join(source.name for source in sources)}). Pack a folder with one "
                "sub-folder a class, and name it: "
                "--set 'data.sources={mine: {path: a, validation: b}}'"
            )
        )
    return labelled


def _what_is_learned(recipe: TrainRecipe, labelled: Sequence[Source]) -> str:
    names = ", ".join(source.name for source in labelled)
    if isinstance(recipe.task, ClassifyConfig):
        return f"classes of {names}, through the whole model under {recipe.mask.name} attention"
    if _learns_by_itself(recipe):
        return f"task {recipe.task.registered_name} of the run, with its settings; no probes"
    if isinstance(recipe.task, NextTokenProbesConfig) and recipe.task.probes is not None:
        return f"next-token loss, and probes at every layer on the labels of {names}"
    reason = "" if labelled else "no labels: "
    return f"{reason}next-token loss only, no probes"


def _what_sequences_become(
    trained: TrainRecipe, recipe: TrainRecipe, sources: Sequence[Source]
) -> list[str]:
    """Say how long sequences are, and what the new grid makes of videos and of small images."""
    old, new = trained.layout, recipe.layout
    lines = [
        f"a sequence: {_size(new)} tokens = {new.num_visual:,}; trained were {_size(old)} = "
        f"{old.num_visual:,}"
    ]
    videos = [source.name for source in sources if source.train.kind == "videos"]
    if videos and new.frames == 1 < old.frames:
        lines.append(
            f"videos become single frames ({', '.join(videos)}): {old.num_visual:,} tokens, the "
            f"context that was trained, hold one frame of {new.height} × {new.width}. --frames N "
            "takes more of them, in a longer context"
        )
    side, before = recipe.clip.resolution, trained.clip.resolution
    if side == before:
        return lines
    lines.append(f"a frame: {side} × {side} px instead of {before} × {before}")
    for source in sources:
        stored = _stored_side(source)
        if stored is not None and stored < side:
            lines.append(
                f"images of {source.name} are enlarged {side / stored:.3g} times, from {stored} px "
                f"(the shorter side of one of them) to {side} px: no detail is added"
            )
    return lines


def _size(layout: SequenceLayout) -> str:
    frames = "1 frame" if layout.frames == 1 else f"{layout.frames} frames"
    return f"{frames} × {layout.height} × {layout.width}"


def _stored_side(source: Source) -> int | None:
    """Return the shorter side in pixels of a sample of a source; None if it has none.

    Token shards hold no pixels, and what cannot be decoded is counted by the training.
    """
    if source.train.form == "tokens":
        return None
    try:
        sample, frame = next(FrameList(source.train).spread(1))
        frames_THWC = decode_sample(source.train, sample, frame, 1, 1)
    except UndecodableError:
        return None
    height, width = frames_THWC.shape[1:3]
    return int(min(height, width))


def finetune_recipe(
    trained: TrainRecipe, checkpoint: str, request: FinetuneRequest, labelled: Sequence[Source]
) -> TrainRecipe:
    """The recipe of a fine-tuning: the trained one with what the request changes.

    Without `frames`, a sequence keeps as many as fit the trained number of visual tokens (4096
    tokens: 16 frames at 16×16, 4 at 32×32), at least one. To classify, it is one picture.

    Args:
        trained: of the run.
        checkpoint: that it begins from.
        request: what the user asked for.
        labelled: sources whose labels are learned; none: no probes.

    Raises:
        UserError: a resolution that the tokenizer does not have.
        RecipeError: the changed recipe is impossible.
    """
    training = on_any_machine(trained.training)
    raw: dict[str, Any] = trained.model_copy(update={"training": training}).model_dump(mode="json")
    old = trained.layout
    layout = _changed_layout(trained, _with_frames(request, labelled))
    suffix = "classify" if request.task == "classify" else "finetune"
    raw["name"] = f"{trained.name}-{suffix}"
    raw["title"] = f"{trained.name} at {layout.height}×{layout.width} tokens"
    raw["output"] = request.output or f"{trained.output}-{suffix}"
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
    at_once = max(trained.training.micro_batch * old.num_visual // layout.num_visual, 1)
    raw["training"] |= {
        "steps": steps,
        "batch_tokens": sequences * layout.num_visual,
        "micro_batch": min(at_once, sequences),
    }
    raw["schedule"]["warmup_steps"] = steps // 10
    raw["optimizer"] |= {"lr": trained.optimizer.lr * LR_RATIO, "layer_decay": LAYER_DECAY}
    _set_task(raw, trained, request.task, [source.name for source in labelled])
    for override in request.overrides:
        apply_override(raw, override, "toto finetune")
    recipe = check_recipe(raw, "toto finetune")
    assert isinstance(recipe, TrainRecipe)
    return recipe


def _with_frames(request: FinetuneRequest, labelled: Sequence[Source]) -> FinetuneRequest:
    """Pictures are classified one by one: those of a sequence would read each other."""
    pictures = request.task == "classify" and labelled and labelled[0].train.kind == "images"
    return replace(request, frames=1) if pictures and request.frames is None else request


def _set_task(
    raw: dict[str, Any], trained: TrainRecipe, task: FinetuneTask, labelled: list[str]
) -> None:
    if task == "classify":
        if not isinstance(trained.task, ClassifyConfig):
            raw["task"] = {"name": task}
        raw["mask"] = {"name": "full" if "full" in trained.backbone.masks else "causal"}
        sources = raw["data"]["sources"]
        raw["data"]["sources"] = {name: sources[name] for name in sources if name in labelled}
        return
    if _learns_by_itself(trained):
        return
    probes = raw["task"].get("probes") or {}
    raw["task"] = {"name": task, "probes": probes | {"sources": labelled} if labelled else None}
    if trained.mask.name == "full":
        raw["mask"] = {"name": "causal"}
    if labelled:
        # A probe bank reads its weights whole.
        raw["training"]["deepspeed"]["zero_stage"] = 0


def _learns_by_itself(trained: TrainRecipe) -> bool:
    """Whether the run has a task of a plug-in, which a fine-tuning keeps with its settings."""
    plain = (NextTokenConfig, NextTokenProbesConfig, ClassifyConfig)
    return type(trained.task) not in plain


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
