"""A trained run, found and loaded: what probe, generate, finetune and report begin with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from toto.errors import CheckpointError, UserError
from toto.jobs.console import say
from toto.model import AutoregressiveModel
from toto.recipe.reader import check_recorded
from toto.recipe.schemas import Recipe, TokenizerRecipe, TrainRecipe
from toto.registry import import_plugin
from toto.tasks.config import ClassifyConfig, ModelTaskConfig, TokenizerTaskConfig
from toto.training.checkpoint import (
    CheckpointMeta,
    find_checkpoint,
    load_weights,
    read_meta,
    tensor_names,
)
from toto.training.checkpoint_folder import FOLDER, complete_checkpoints
from toto.training.machine import resolve_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from toto.tokenizers.base import Tokenizer
    from toto.tokenizers.config import TokenizerConfig
    from toto.training.config import TrainingConfig

__all__ = [
    "FoundCheckpoint",
    "FoundRun",
    "FoundTokenizerRun",
    "Trained",
    "build_model",
    "build_target_tokenizer",
    "build_tokenizer",
    "fingerprints_in",
    "import_all",
    "load_model_weights",
    "load_trained",
    "load_trained_tokenizer",
    "names_beside",
    "newest_finetuning",
    "on_any_machine",
    "require_next_tokens",
    "resolve_any_run",
    "resolve_run",
]

RUNS = Path("runs")
NEXT_TOKEN_VERB = "train"
TOKENIZER_VERB = "tokenizer"


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint of any run, described but not loaded."""

    checkpoint: Path
    meta: CheckpointMeta
    recipe: Recipe

    @property
    def run(self) -> Path:
        """The run directory that the checkpoint stands in."""
        return self.checkpoint.parent.parent


@dataclass(frozen=True)
class FoundRun(FoundCheckpoint):
    """A checkpoint of a next-token run."""

    recipe: TrainRecipe


@dataclass(frozen=True)
class FoundTokenizerRun(FoundCheckpoint):
    """A checkpoint of a tokenizer's run."""

    recipe: TokenizerRecipe


@dataclass(frozen=True)
class Trained:
    """A loaded model with the tokenizer of its inputs, in evaluation mode, on the device."""

    found: FoundRun
    model: AutoregressiveModel
    tokenizer: Tokenizer
    device: torch.device
    precision: Literal["fp32", "bf16"]

    def autocast(self) -> torch.autocast:
        """The precision that the run was trained in, where this machine has it."""
        enabled = self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


def import_all(references: Sequence[str]) -> None:
    """Import plug-ins named on the command line; a checkpoint never imports code by itself."""
    for reference in references:
        import_plugin(reference, Path.cwd())


def resolve_run(run: str | None) -> FoundRun:
    """The checkpoint that a RUN argument means; without one the newest of next-token runs.

    Raises:
        CheckpointError: there is none, or it is none of a next-token run.
    """
    if run is None:
        newest = _newest(_is_next_token)
        if newest is None:
            raise CheckpointError(
                f"no complete next-token checkpoint under {RUNS}/. Train one "
                "(`toto train recipes/quickstart.yaml`), or name a run"
            )
        say(f"taking the newest next-token checkpoint: {newest[0]}")
        return _next_token_run(*newest)
    checkpoint = find_checkpoint(Path(run))
    return _next_token_run(checkpoint, read_meta(checkpoint))


def resolve_any_run(run: str | None) -> FoundRun | FoundTokenizerRun:
    """The checkpoint that a RUN argument means, of whichever verb; without one the newest.

    Raises:
        CheckpointError: there is none.
    """
    if run is None:
        newest = _newest(lambda raw: True)
        if newest is None:
            raise CheckpointError(
                f"no complete checkpoint under {RUNS}/. Train a model "
                "(`toto train recipes/quickstart.yaml`), or name a run"
            )
        say(f"taking the newest checkpoint: {newest[0]}")
        return _run_of_any_verb(*newest)
    checkpoint = find_checkpoint(Path(run))
    return _run_of_any_verb(checkpoint, read_meta(checkpoint))


def newest_finetuning() -> FoundRun:
    """The newest of the runs that began from another run's weights.

    Raises:
        CheckpointError: there is none.
    """
    newest = _newest(lambda raw: _is_next_token(raw) and raw.get("init_from") is not None)
    if newest is None:
        raise CheckpointError(
            f"--resume: no fine-tuning under {RUNS}/ has a complete checkpoint. Name the run that "
            "it began from, `toto finetune RUN --resume`, or begin one without --resume"
        )
    return _next_token_run(*newest)


def require_next_tokens(found: FoundRun) -> None:
    """Refuse a model that learned classes: its readout kept its weights while all else changed.

    Raises:
        UserError: it did.
    """
    if isinstance(found.recipe.task, ClassifyConfig):
        raise UserError(
            f"{found.checkpoint} learned to tell classes apart, and no longer predicts tokens. "
            "Name a next-token run, such as the one that it started from, or fine-tune it on "
            "classes again with `toto finetune RUN --classify`"
        )


def build_model(recipe: TrainRecipe) -> AutoregressiveModel:
    """The model of a recipe, freshly initialised."""
    return AutoregressiveModel(
        recipe.tokenizer,
        recipe.backbone,
        recipe.target_tokenizer,
        recipe.mask.build(recipe.layout),
    )


def load_trained(found: FoundRun, *, precision: Literal["fp32", "bf16"] | None = None) -> Trained:
    """Build the model of a checkpoint and the tokenizer of its inputs, with its weights, strictly.

    Args:
        found: the checkpoint, with the recipe that the model is built by.
        precision: of the model's passes; None: the run's, but fp32 in place of bf16 where this
            machine computes bf16 by emulation alone.

    Raises:
        CheckpointError: broken files, other weights, or another tokenizer than it was trained with.
    """
    training = on_any_machine(found.recipe.training)
    if precision is not None:
        training = training.model_copy(update={"precision": precision})
    settings, _ = resolve_machine(training)
    assert settings.precision != "auto"
    device = torch.device(settings.device)
    tokenizer = build_tokenizer(found)
    recipe = found.recipe
    model = build_model(recipe)
    load_model_weights(found, model)
    model.to(device).eval()
    tokenizer.to(device).eval()
    return Trained(found, model, tokenizer, device, settings.precision)


def load_model_weights(found: FoundRun, model: AutoregressiveModel) -> None:
    """Copy a checkpoint's weights of the model, strictly; those of its probes are left out.

    Raises:
        CheckpointError: broken files, other weights, or values that are NaN or infinite.
    """
    task = found.recipe.task
    assert isinstance(task, ModelTaskConfig)
    load_weights(found.checkpoint, model, beside=task.beside)
    require_finite(model, str(found.checkpoint))


def require_finite(model: nn.Module, origin: str) -> None:
    """Refuse weights that every result would be NaN with.

    Args:
        model: with its weights.
        origin: where they came from, for the message.

    Raises:
        CheckpointError: a weight is NaN or infinite; the message names it.
    """
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise CheckpointError(
                f"{origin}: {name} holds values that are NaN or infinite. Name an earlier "
                "checkpoint, or weights of another run"
            )


def names_beside(found: FoundRun) -> list[str]:
    """Return the names of a checkpoint's tensors that its task keeps next to the model's, sorted.

    Raises:
        CheckpointError: broken files.
    """
    task = found.recipe.task
    assert isinstance(task, ModelTaskConfig)
    return [] if task.beside is None else tensor_names(found.checkpoint, prefix=task.beside)


def load_trained_tokenizer(found: FoundTokenizerRun) -> Tokenizer:
    """The tokenizer as its checkpoint holds it, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: broken files, or other weights.
        UserError: weights that the recipe began from, or compares features with, are missing.
    """
    recipe = found.recipe
    assert isinstance(recipe.task, TokenizerTaskConfig)
    task = recipe.task.build(recipe.tokenizer.build())
    load_weights(found.checkpoint, task.trainable)
    return task.tokenizer.eval()


def on_any_machine(training: TrainingConfig) -> TrainingConfig:
    """The settings of a run that go with it to another machine: not device, bf16 and engine."""
    precision = "auto" if training.precision == "bf16" else training.precision
    return training.model_copy(update={"device": "auto", "precision": precision, "engine": "auto"})


def fingerprints_in(meta: CheckpointMeta) -> dict[str, str]:
    """The tokenizers that a checkpoint belongs to: section of the recipe → fingerprint."""
    sections = {"tokenizer": meta.tokenizer, "target_tokenizer": meta.target_tokenizer}
    return {section: value for section, value in sections.items() if value is not None}


def build_tokenizer(found: FoundRun) -> Tokenizer:
    """The tokenizer of a checkpoint's inputs, checked by its fingerprint.

    Raises:
        CheckpointError: the tokenizer's weights are not those the checkpoint was trained with.
    """
    return _built(found.recipe.tokenizer, found.meta.tokenizer, found.checkpoint)


def build_target_tokenizer(found: FoundRun) -> Tokenizer:
    """The tokenizer of what a checkpoint predicts, likewise; often that of its inputs.

    Raises:
        CheckpointError: as `build_tokenizer`.
    """
    if found.recipe.target_tokenizer is None:
        return build_tokenizer(found)
    return _built(found.recipe.target_tokenizer, found.meta.target_tokenizer, found.checkpoint)


def _built(config: TokenizerConfig, expected: str | None, checkpoint: Path) -> Tokenizer:
    tokenizer = config.build()
    if not tokenizer.has_fingerprint(expected):
        raise CheckpointError(
            f"{checkpoint} was trained with another tokenizer: fingerprint {str(expected)[:12]}, "
            f"and {config!r} has {tokenizer.fingerprint()[:12]}. Put back the tokenizer weights of "
            "that run"
        )
    return tokenizer


def _is_next_token(raw: dict[str, Any]) -> bool:
    return raw.get("verb") == NEXT_TOKEN_VERB


def _next_token_run(checkpoint: Path, meta: CheckpointMeta) -> FoundRun:
    if not _is_next_token(meta.recipe):
        raise CheckpointError(
            f"{checkpoint} is of `verb: {meta.recipe.get('verb')}`, and a next-token run is "
            "needed. Name one that `toto train` made"
        )
    recipe = _recipe_in(checkpoint, meta)
    assert isinstance(recipe, TrainRecipe)
    return FoundRun(checkpoint, meta, recipe)


def _run_of_any_verb(checkpoint: Path, meta: CheckpointMeta) -> FoundRun | FoundTokenizerRun:
    if meta.recipe.get("verb") != TOKENIZER_VERB:
        return _next_token_run(checkpoint, meta)
    recipe = _recipe_in(checkpoint, meta)
    assert isinstance(recipe, TokenizerRecipe)
    return FoundTokenizerRun(checkpoint, meta, recipe)


def _recipe_in(checkpoint: Path, meta: CheckpointMeta) -> Recipe:
    """Without its imports: a checkpoint never imports code by itself."""
    return check_recorded(meta.recipe, f"the recipe in {checkpoint}")


def _newest(wanted: Callable[[dict[str, Any]], bool]) -> tuple[Path, CheckpointMeta] | None:
    """The newest checkpoint of a run with a wanted recipe; says which are broken."""
    runs = [complete_checkpoints(run / FOLDER) for run in RUNS.glob("*")]
    runs = sorted(filter(None, runs), key=lambda run: run[-1].stat().st_mtime, reverse=True)
    for checkpoint in (checkpoint for run in runs for checkpoint in reversed(run)):
        try:
            meta = read_meta(checkpoint)
        except CheckpointError as error:
            say(f"left out: {error}")
            continue
        if wanted(meta.recipe):
            return checkpoint, meta
    return None
