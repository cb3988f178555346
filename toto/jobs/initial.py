"""`init_from`: the weights that a training starts from, and what they computed before."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from toto.errors import CheckpointError
from toto.export.hf import RECORD, read_model, read_record
from toto.jobs.trained import (
    build_model,
    load_model_weights,
    names_beside,
    require_finite,
    resolve_run,
)
from toto.registry import differences
from toto.training.checkpoint import check_tensors
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from toto.jobs.trained import FoundRun
    from toto.model import AutoregressiveModel
    from toto.recipe.schemas import TrainRecipe
    from toto.tokenizers.base import Tokenizer

__all__ = ["InitialWeights", "find_initial"]

HF_PREFIX = "hf:"


@dataclass(frozen=True)
class InitialWeights:
    """Where a model's weights came from.

    Attributes:
        origin: the checkpoint, or hf:FOLDER.
        notes: what differs on purpose from what the weights were trained for, for the user.
        load: copies them into a model of the recipe.
    """

    origin: str
    notes: list[str]
    load: Callable[[AutoregressiveModel], None]


def find_initial(
    recipe: TrainRecipe, tokenizer: Tokenizer, target_tokenizer: Tokenizer | None
) -> InitialWeights:
    """Find the weights that `init_from` names, of another run or of hf:FOLDER, and check them.

    Weights can fit by shape and compute something else: with another number of heads, another norm
    epsilon or another activation. So the parent's settings are compared field by field.

    Args:
        recipe: with `init_from`.
        tokenizer: of the recipe.
        target_tokenizer: of the recipe; None without one.

    Raises:
        CheckpointError: another backbone or tokenizer, or other weights; each difference is named
            with the parent's value, the recipe's, and what to write.
        UserError: the content of the folder is no model like this.
    """
    assert recipe.init_from is not None
    if recipe.init_from.startswith(HF_PREFIX):
        return _in_folder(recipe, tokenizer)
    parent = resolve_run(recipe.init_from)
    _require_same_backbone(parent, recipe)
    ours = {"tokenizer": tokenizer, "target_tokenizer": target_tokenizer}
    _require_same_tokenizers(parent, recipe, ours)
    notes = _changed_on_purpose(parent.recipe, recipe)
    beside = names_beside(parent)
    if beside:
        its = parent.recipe.task.registered_name
        notes.append(
            f"left out: {number_of(len(beside), 'tensor')} of its task {its} ({beside[0]}, …)"
        )
    return InitialWeights(str(parent.checkpoint), notes, partial(load_model_weights, parent))


def _in_folder(recipe: TrainRecipe, tokenizer: Tokenizer) -> InitialWeights:
    assert recipe.init_from is not None
    folder = Path(recipe.init_from.removeprefix(HF_PREFIX))
    record = read_record(folder)
    if record is None:
        notes = [f"{folder} has no {RECORD}: whether its ids are this tokenizer's codes is unknown"]
    elif tokenizer.has_fingerprint(record.fingerprint):
        notes = []
    else:
        raise CheckpointError(
            f"init_from: {folder} takes the codes of another tokenizer than this recipe's. "
            f"{folder / RECORD} names tokenizer: {json.dumps(record.tokenizer)}, this recipe "
            f"tokenizer: {tokenizer.config.model_dump_json()}"
        )
    with torch.device("meta"):  # names and shapes alone
        model = build_model(recipe)
    there = read_model(folder, model)
    check_tensors(model.state_dict(), there.state, f"weights of {folder}")

    def load(model: AutoregressiveModel) -> None:
        model.load_state_dict(there.state)
        require_finite(model, str(folder))

    return InitialWeights(recipe.init_from, [*notes, *there.changed], load)


def _require_same_backbone(parent: FoundRun, recipe: TrainRecipe) -> None:
    changed = [
        change
        for change in differences(parent.recipe.backbone, recipe.backbone)
        if change.field not in recipe.backbone.changed_by_finetuning
    ]
    if not changed:
        return
    lines = [
        f"  backbone.{change.field}: {json.dumps(change.theirs)} in the parent, "
        f"{json.dumps(change.ours)} in this recipe"
        for change in changed
    ]
    values = ", ".join(f"{change.field}: {json.dumps(change.theirs)}" for change in changed)
    raise CheckpointError(
        f"init_from: {parent.checkpoint} was trained with another backbone, and its weights would "
        "compute something else in this one:\n"
        + "\n".join(lines)
        + f"\nWrite the parent's values in this recipe, backbone: {{{values}}}, or leave out "
        "init_from"
    )


def _require_same_tokenizers(
    parent: FoundRun, recipe: TrainRecipe, ours: Mapping[str, Tokenizer | None]
) -> None:
    recorded = {
        "tokenizer": parent.meta.tokenizer,
        "target_tokenizer": parent.meta.target_tokenizer,
    }
    lines = []
    for section, tokenizer in ours.items():
        theirs = recorded[section]
        if tokenizer is None and theirs is None:
            continue
        if tokenizer is not None and tokenizer.has_fingerprint(theirs):
            continue
        lines += _tokenizer_changes(section, parent.recipe, recipe)
    if lines:
        raise CheckpointError(
            f"init_from: {parent.checkpoint} was trained with other tokens than this recipe's:\n  "
            + "\n  ".join(lines)
            + "\nWrite the parent's values in this recipe, or leave out init_from"
        )


def _tokenizer_changes(section: str, parent: TrainRecipe, recipe: TrainRecipe) -> list[str]:
    """Lines for the user: each field that differs, or that the weights themselves do."""
    theirs, ours = getattr(parent, section), getattr(recipe, section)
    if theirs is None or ours is None:
        return [f"{section}: {_shown(theirs)} in the parent, {_shown(ours)} in this recipe"]
    changed = differences(theirs, ours)
    if not changed:
        return [
            f"{section}: the weights that {_shown(ours)} names have changed since. Put back those "
            "of the parent"
        ]
    return [
        f"{section}.{change.field}: {json.dumps(change.theirs)} in the parent, "
        f"{json.dumps(change.ours)} in this recipe"
        for change in changed
    ]


def _shown(config: Any) -> str:
    return "null" if config is None else config.model_dump_json()


def _changed_on_purpose(parent: TrainRecipe, recipe: TrainRecipe) -> list[str]:
    """What fine-tuning changes, in words: RoPE base, mask, layout."""
    notes = [
        f"backbone.{change.field}: {change.theirs} in the parent, {change.ours} here"
        for change in differences(parent.backbone, recipe.backbone)
    ]
    if parent.mask != recipe.mask:
        notes.append(f"mask: {parent.mask.name} in the parent, {recipe.mask.name} here")
    if parent.layout != recipe.layout:
        then, now = parent.layout, recipe.layout
        notes.append(
            f"frames × tokens: {then.frames} × {then.height} × {then.width} in the parent, "
            f"{now.frames} × {now.height} × {now.width} here"
        )
    return notes
