"""Rules across sections: what each section allows, but not together. No torch here.

A rule names the sections that it reads and yields Problems; it runs when those sections are sound,
so that one reading of a recipe reports every mistake that can be seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from toto.data.addresses import is_remote, place, spelled_out
from toto.data.config import TOGETHER, Paths
from toto.errors import Problem
from toto.recipe.schemas import Recipe, TokenizerRecipe, TrainRecipe
from toto.tasks.config import (
    ClassifyConfig,
    NextTokenProbesConfig,
    TokenizerTaskConfig,
    VqganTaskConfig,
)
from toto.tokenizers.config import TokenizerConfig
from toto.training.deepspeed_settings import clashes
from toto.wording import number_of

__all__ = ["broken_rules"]

R = TypeVar("R", bound=Recipe)
Rule = Callable[[R], Iterator[Problem]]

MAX_STORED_CODE = 2**16 - 1


def broken_rules(recipe: Recipe, unsound: set[str]) -> list[Problem]:
    """The Problems of all rules whose sections are sound.

    Args:
        recipe: may lack the sections named in `unsound`.
        unsound: top-level sections that did not validate.
    """
    problems = _broken(_RULES, recipe, unsound)
    if isinstance(recipe, TrainRecipe):
        problems += _broken(_TRAIN_RULES, recipe, unsound)
    if isinstance(recipe, TokenizerRecipe):
        problems += _broken(_TOKENIZER_RULES, recipe, unsound)
    return problems


def _broken(
    rules: Sequence[tuple[tuple[str, ...], Rule[R]]], recipe: R, unsound: set[str]
) -> list[Problem]:
    return [
        problem
        for sections, rule in rules
        if not unsound & set(sections)
        for problem in rule(recipe)
    ]


def _grid_fits(recipe: Recipe) -> Iterator[Problem]:
    try:
        recipe.tokenizer.grid(recipe.clip.resolution)
    except ValueError as error:
        yield Problem("clip.resolution", str(error), "Change it, or take another tokenizer")


def _batch_fits(recipe: Recipe) -> Iterator[Problem]:
    try:
        per_sequence = recipe.layout.num_visual
    except ValueError:
        return  # _grid_fits reports it
    tokens = recipe.training.batch_tokens
    if tokens % per_sequence:
        nearest = max(round(tokens / per_sequence), 1) * per_sequence
        layout = recipe.layout
        yield Problem(
            "training.batch_tokens",
            f"{tokens} is not a multiple of the {per_sequence} visual tokens of a sequence "
            f"({layout.frames} × {layout.height} × {layout.width})",
            f"Take {nearest}",
        )
    elif recipe.training.micro_batch > tokens // per_sequence:
        yield Problem(
            "training.micro_batch",
            f"{number_of(recipe.training.micro_batch, 'sequence')}, but a step has "
            f"{tokens // per_sequence}",
            f"Take {tokens // per_sequence} or fewer, or raise training.batch_tokens",
        )


def _warmup_ends(recipe: Recipe) -> Iterator[Problem]:
    if recipe.schedule.warmup_steps >= recipe.training.steps:
        yield Problem(
            "schedule.warmup_steps",
            f"{number_of(recipe.schedule.warmup_steps, 'step')} of warm-up in a run of "
            f"{recipe.training.steps}",
            f"Take fewer, for example {recipe.training.steps // 10}",
        )


def _kept_steps_are_saved(recipe: Recipe) -> Iterator[Problem]:
    keep, save = recipe.training.keep_every, recipe.training.save_every
    if keep is not None and keep % save:
        yield Problem(
            "training.keep_every",
            f"{keep} is no multiple of training.save_every {save}: few of those steps are saved",
            f"Take {-(-keep // save) * save}",
        )


def _task_is_of_verb(recipe: Recipe) -> Iterator[Problem]:
    if recipe.task.verb != recipe.verb:
        yield Problem(
            "task.name",
            f"{recipe.task.registered_name} is no task of `verb: {recipe.verb}`",
            "See `toto list tasks`",
        )


def _datasets_differ(recipe: Recipe) -> Iterator[Problem]:
    def places(paths: Paths) -> list[str]:
        found = [place(recipe.data.root, name) for name in spelled_out(paths)]
        return [name if is_remote(name) else os.path.abspath(name) for name in found]

    trained = {
        path: name for name, source in recipe.data.sources.items() for path in places(source.path)
    }
    for name, source in recipe.data.sources.items():
        held_out = source.validation or ()
        for path, named in zip(places(held_out), spelled_out(held_out), strict=True):
            if path in trained:
                yield Problem(
                    f"data.sources.{name}.validation",
                    f"{named} is also trained on, by source {trained[path]}",
                    "Hold out another dataset",
                )


def _mask_fits(recipe: TrainRecipe) -> Iterator[Problem]:
    mask, backbone = recipe.mask, recipe.backbone
    if mask.name not in backbone.masks:
        yield Problem(
            "mask.name",
            f"{backbone.registered_name} does not work under {mask.name}",
            f"It takes {', '.join(backbone.masks)}",
        )
    elif isinstance(recipe.task, ClassifyConfig):
        if mask.name not in ("causal", "full"):
            yield Problem(
                "mask.name",
                f"{mask.name} is for predicting tokens, and task classify predicts classes",
                "Take causal or full",
            )
    elif mask.name == "full":
        yield Problem(
            "mask.name",
            "under full attention a token reads the one that it shall predict",
            "Take causal, prefix or per_image; full is for task classify",
        )
    elif mask.frames is not None and mask.frames >= recipe.clip.frames:
        yield Problem(
            "mask.frames",
            f"a prefix of {mask.frames} of the {recipe.clip.frames} frames leaves none to predict",
            f"Take fewer, for example {max(recipe.clip.frames // 2, 1)}",
        )


def _classes_can_be_learned(recipe: TrainRecipe) -> Iterator[Problem]:
    task, depth = recipe.task, recipe.backbone.num_layers
    if not isinstance(task, ClassifyConfig):
        return
    if not -depth - 1 <= task.layer <= depth:
        yield Problem(
            "task.layer",
            f"there is no layer {task.layer}: the backbone has 0 (the embedding) to {depth}",
            "Take one of those, or -1 for the last",
        )
    if task.mixup and recipe.training.micro_batch == 1:
        yield Problem(
            "task.mixup",
            "mixes the clips of a micro-batch, and training.micro_batch is 1",
            "Raise training.micro_batch, or write mixup: 0",
        )
    if task.mixup and recipe.data.tokens == "once":
        yield Problem(
            "task.mixup",
            "mixes pixels, and data.tokens: once stores codes instead",
            "Write data.tokens: in_run, or mixup: 0",
        )


def _probed_sources_are_there(recipe: TrainRecipe) -> Iterator[Problem]:
    task = recipe.task
    if not isinstance(task, NextTokenProbesConfig):
        return
    for name in task.labelled(tuple(recipe.data.sources)):
        if name not in recipe.data.sources:
            yield Problem(
                "task.probes.sources",
                f"there is no source {name}",
                f"data.sources has {', '.join(recipe.data.sources)}",
            )


def _layers_can_decay(recipe: TokenizerRecipe) -> Iterator[Problem]:
    if recipe.optimizer.layer_decay != 1.0:
        yield Problem(
            "optimizer.layer_decay",
            "a tokenizer has no layers whose rates could fall",
            "Remove it",
        )


def _weights_are_named(recipe: TrainRecipe) -> Iterator[Problem]:
    missing = recipe.tokenizer.missing_weights
    if missing:
        yield Problem("tokenizer.weights", "missing", missing)


def _target_weights_are_named(recipe: TrainRecipe) -> Iterator[Problem]:
    missing = recipe.target_tokenizer and recipe.target_tokenizer.missing_weights
    if missing:
        yield Problem("target_tokenizer.weights", "missing", missing)


def _target_fits(recipe: TrainRecipe) -> Iterator[Problem]:
    target, tokenizer = recipe.target_tokenizer, recipe.tokenizer
    if target is None:
        return
    if tokenizer.output == "codes":
        yield Problem(
            "target_tokenizer",
            f"tokenizer {tokenizer.registered_name} gives codes, which are their own targets",
            "Remove target_tokenizer, or take patches in: tokenizer: {name: patch}",
        )
    elif target.output == "patches":
        yield Problem(
            "target_tokenizer",
            f"{target.registered_name} gives patches, and patch inputs regress their own",
            "Remove target_tokenizer, or name one that gives codes, such as dvae",
        )
    else:
        yield from _target_grid_fits(recipe, target)


def _target_grid_fits(recipe: TrainRecipe, target: TokenizerConfig) -> Iterator[Problem]:
    resolution = recipe.clip.resolution
    try:
        grid = recipe.tokenizer.grid(resolution)
    except ValueError:
        return  # _grid_fits reports it
    try:
        target.resolution_of(grid, resolution)
    except ValueError as error:
        yield Problem(
            "target_tokenizer",
            f"{error}, and the inputs have that grid ({recipe.tokenizer.registered_name} at "
            f"{resolution} px)",
            "Take larger patches, or a target_tokenizer with fewer pixels a token",
        )


def _codes_are_classified(recipe: TrainRecipe) -> Iterator[Problem]:
    if recipe.target.output == "codes" and recipe.backbone.patch_readout != "linear":
        yield Problem(
            "backbone.patch_readout",
            f"{recipe.backbone.patch_readout} regresses patches, and the targets are codes of "
            f"{recipe.target.registered_name}",
            "Write patch_readout: linear",
        )


def _tokens_can_be_stored(recipe: TrainRecipe) -> Iterator[Problem]:
    if recipe.data.tokens == "in_run":
        return
    if recipe.tokenizer.output == "patches":
        yield Problem(
            "data.tokens",
            f"tokenizer {recipe.tokenizer.registered_name} gives patches, which token shards "
            "do not hold",
            "Write tokens: in_run",
        )
    elif recipe.tokenizer.codebook_size - 1 > MAX_STORED_CODE:
        yield Problem(
            "data.tokens",
            f"token shards hold 16-bit codes, and there are {recipe.tokenizer.codebook_size}",
            "Write tokens: in_run",
        )


def _task_trains_tokenizer(recipe: TokenizerRecipe) -> Iterator[Problem]:
    task, tokenizer = recipe.task, recipe.tokenizer.registered_name
    if isinstance(task, TokenizerTaskConfig) and task.trains != tokenizer:
        yield Problem(
            "task.name",
            f"task {task.registered_name} trains tokenizer {task.trains}, not {tokenizer}",
            f"Write the task of {tokenizer}; see `toto list tasks`",
        )


def _tokenizers_keep_activations(recipe: TokenizerRecipe) -> Iterator[Problem]:
    if recipe.training.recompute:
        yield Problem(
            "training.recompute",
            "tokenizers are small and keep all they compute",
            "Remove it, or lower training.micro_batch",
        )


def _discriminator_sees_patches(recipe: TokenizerRecipe) -> Iterator[Problem]:
    task, resolution = recipe.task, recipe.clip.resolution
    if not isinstance(task, VqganTaskConfig) or task.discriminator_start >= recipe.training.steps:
        return
    if resolution < task.smallest_resolution:
        yield Problem(
            "task.discriminator_layers",
            f"{task.discriminator_layers} halvings leave no patch of pictures of {resolution} px; "
            f"they need {task.smallest_resolution} px",
            "Take fewer, larger pictures, or a discriminator_start after the last step",
        )


def _together_is_no_source(recipe: TokenizerRecipe) -> Iterator[Problem]:
    if TOGETHER in recipe.data.sources:
        yield Problem(
            f"data.sources.{TOGETHER}",
            "an evaluation holds all sources together under this name",
            "Call the source something else",
        )


def _extra_adds(recipe: Recipe) -> Iterator[Problem]:
    for key in clashes(recipe.training, recipe.optimizer):
        yield Problem(
            f"training.deepspeed.extra.{key}",
            "toto sees to it itself",
            "Leave it out; `toto show RECIPE` prints all that DeepSpeed is given",
        )


def _offloaded_state_is_parted(recipe: Recipe) -> Iterator[Problem]:
    deepspeed = recipe.training.deepspeed
    if deepspeed.offload_optimizer and deepspeed.zero_stage == 0:
        yield Problem(
            "training.deepspeed.offload_optimizer",
            "at zero_stage 0 the optimizer's state stays on the GPU",
            "Take zero_stage 1, 2 or 3, or leave it out",
        )


_RULES: list[tuple[tuple[str, ...], Rule[Recipe]]] = [
    (("tokenizer", "clip"), _grid_fits),
    (("tokenizer", "clip", "training"), _batch_fits),
    (("schedule", "training"), _warmup_ends),
    (("training",), _kept_steps_are_saved),
    (("training", "optimizer"), _extra_adds),
    (("training",), _offloaded_state_is_parted),
    (("task",), _task_is_of_verb),
    (("data",), _datasets_differ),
]
_TRAIN_RULES: list[tuple[tuple[str, ...], Rule[TrainRecipe]]] = [
    (("tokenizer",), _weights_are_named),
    (("target_tokenizer",), _target_weights_are_named),
    (("tokenizer", "target_tokenizer", "clip"), _target_fits),
    (("tokenizer", "target_tokenizer", "backbone"), _codes_are_classified),
    (("tokenizer", "data"), _tokens_can_be_stored),
    (("mask", "backbone", "clip", "task"), _mask_fits),
    (("task", "backbone", "training", "data"), _classes_can_be_learned),
    (("task", "data"), _probed_sources_are_there),
]
_TOKENIZER_RULES: list[tuple[tuple[str, ...], Rule[TokenizerRecipe]]] = [
    (("tokenizer", "task"), _task_trains_tokenizer),
    (("training",), _tokenizers_keep_activations),
    (("optimizer",), _layers_can_decay),
    (("task", "clip", "training"), _discriminator_sees_patches),
    (("data",), _together_is_no_source),
]
