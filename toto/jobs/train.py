"""`toto train`: a recipe becomes a run directory with a trained model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toto.data.loader import evaluation_batches, training_batches
from toto.data.stream import Stream
from toto.errors import CheckpointError, DataError
from toto.jobs.console import console, say
from toto.jobs.realised import FailureLog, describe_draws, realised_mixture
from toto.jobs.setup import begin_run, read_recipe_for, record_run
from toto.jobs.sources import Source, open_sources
from toto.jobs.trained import resolve_run
from toto.model import AutoregressiveModel
from toto.recipe.schemas import Recipe, TrainRecipe
from toto.tasks.baselines import TokenBaselines
from toto.tasks.next_token import NextTokenTask, to_frames
from toto.training.checkpoint import load_weights, read_meta
from toto.training.engine_local import LocalEngine
from toto.training.loop import Description, TrainResult, train
from toto.training.metrics import Values, metric_values
from toto.training.progress import make_display
from toto.training.schedule import WarmupCosine
from toto.training.task import Task, sum_metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from toto.data.batch import Batch
    from toto.tokenizers.base import Tokenizer
    from toto.training.rundir import RunDirectory

__all__ = ["make_engine", "run_training", "start_training", "train_task", "validation_batches"]

# Visual tokens of each source that its baselines are fitted on.
BASELINE_TOKENS = 2**18


def start_training(
    name: str, overrides: Sequence[str], *, output: str | None, resume: bool
) -> None:
    """Read a recipe and train it.

    Raises:
        RecipeError: its mistakes, all of them.
        UserError: see `run_training`.
    """
    run_training(read_recipe_for(TrainRecipe, name, overrides, output), resume=resume)


def run_training(recipe: TrainRecipe, *, resume: bool) -> TrainResult:
    """Train a recipe to its end, or to a signal.

    Raises:
        UserError: data, run directory or checkpoint do not fit; each says how to mend it.
        RunError: the run had to stop.
    """
    recipe, run = begin_run(recipe, resume=resume)
    tokenizer = recipe.tokenizer.build().eval().to(recipe.training.device)
    sources = open_sources(recipe, tokenizer)
    torch.manual_seed(recipe.seed)
    model = AutoregressiveModel(recipe.tokenizer, recipe.backbone)
    if recipe.init_from is not None and run.checkpoint is None:
        _load_initial(recipe.init_from, tokenizer, model)
    task = NextTokenTask(model, tokenizer)
    engine = make_engine(recipe, task)
    held_out = {
        source.name: [_tokenized(task, batch) for batch in validation_batches(recipe, source)]
        for source in sources
        if source.validation is not None
    }
    baselines = _baseline_losses(recipe, task, sources, held_out)

    def evaluate() -> dict[str, Values]:
        return {
            name: metric_values(sum_metrics(engine.evaluate(batch) for batch in batches))
            | baselines.get(name, {})
            for name, batches in held_out.items()
        }

    return train_task(
        recipe,
        engine,
        sources,
        run=run,
        fingerprint=tokenizer.fingerprint(),
        evaluate=evaluate if held_out else None,
    )


def make_engine(recipe: Recipe, task: Task[Batch]) -> LocalEngine[Batch]:
    """The engine of a recipe whose machine is settled, compiled if the recipe says so."""
    training = recipe.training
    assert training.precision != "auto"
    engine = LocalEngine(
        task,
        recipe.optimizer,
        WarmupCosine(recipe.schedule, peak=recipe.optimizer.lr, steps=training.steps),
        device=torch.device(training.device),
        precision=training.precision,
    )
    if training.compile:
        engine.compile()
    return engine


def train_task(
    recipe: Recipe,
    engine: LocalEngine[Batch],
    sources: Sequence[Source],
    *,
    run: RunDirectory,
    fingerprint: str | None,
    evaluate: Callable[[], dict[str, Values]] | None,
) -> TrainResult:
    """Run the loop over the mixture of a recipe, whatever the task, and say how it ended."""
    stream = Stream([source.stream_source() for source in sources], recipe.clip, recipe.seed)
    stream.require_one_form()
    data = {source.name: source.train.fingerprint() for source in sources}
    if run.checkpoint is not None:
        _refuse_other_data(data, run.checkpoint)

    def batches(start_step: int, stop_step: int) -> Iterator[Sequence[Batch]]:
        failures = FailureLog(run.path, stream.names, start_step)
        yield from training_batches(
            stream,
            batch_sequences=recipe.batch_sequences,
            micro_batch=recipe.training.micro_batch,
            workers=recipe.data.workers,
            start_step=start_step,
            stop_step=stop_step,
            max_broken=recipe.data.max_broken,
            on_broken=failures.add,
        )

    record_run(recipe, run)
    result = train(
        engine,
        recipe.training,
        run=run,
        batches=batches,
        evaluate=evaluate,
        tokens_per_step=recipe.batch_sequences * recipe.layout.num_visual,
        seed=recipe.seed,
        description=Description(recipe.model_dump(mode="json"), fingerprint, data),
        display=make_display(console),
    )
    drawn = realised_mixture(
        stream, result.step * recipe.batch_sequences, FailureLog.read(run.path)
    )
    for line in describe_draws(drawn):
        say(f"  {line}")
    if result.interrupted:
        say(f"stopped by a signal after step {result.step}; saved {result.checkpoint}")
        say("the same command with --resume goes on")
    else:
        say(f"done: {result.step} steps in {result.seconds:.0f} s; saved {result.checkpoint}")
    return result


def _refuse_other_data(data: dict[str, str], checkpoint: Path) -> None:
    before = read_meta(checkpoint).data
    changed = [name for name, fingerprint in data.items() if before.get(name) != fingerprint]
    if before and changed:  # a checkpoint of before 2026-11-21 does not say
        raise DataError(
            f"data.sources.{', data.sources.'.join(changed)}: not the data that {checkpoint} was "
            "trained on: packed anew, or with other samples excluded. A resumed run is the same "
            "run: put the data back, or begin another run with --output"
        )


def validation_batches(recipe: Recipe, source: Source) -> list[Batch]:
    """The held-out sequences of a source that every evaluation sees."""
    assert source.validation is not None
    return list(
        evaluation_batches(
            source.validation,
            source.clip,
            micro_batch=recipe.training.micro_batch,
            count=recipe.training.eval_sequences,
        )
    )


def _tokenized(task: NextTokenTask, batch: Batch) -> Batch:
    """The batch as codes, so that each evaluation does not tokenize anew; patches stay pixels."""
    if task.tokenizer.config.output == "patches":
        return batch
    device = next(task.model.parameters()).device
    codes_BTHW = to_frames(task.tokenizer, batch.to(device)).cpu()
    return replace(batch, pixels_BTCHW=None, codes_BTHW=codes_BTHW)


def _baseline_losses(
    recipe: TrainRecipe,
    task: NextTokenTask,
    sources: Sequence[Source],
    held_out: dict[str, list[Batch]],
) -> dict[str, Values]:
    """Unigram and copy-the-last-frame on each source's held-out data, fitted on its training data.

    They do not change as the model learns. Patches have none: there is nothing to count.
    """
    if recipe.tokenizer.output == "patches":
        return {}
    losses = {}
    for source in sources:
        if source.name not in held_out:
            continue
        fitted = TokenBaselines.fit(
            _training_codes(recipe, task, source), recipe.tokenizer.codebook_size
        )
        parts = [fitted.losses(_codes(batch)) for batch in held_out[source.name]]
        losses[source.name] = metric_values(sum_metrics(parts))
    return losses


def _training_codes(recipe: TrainRecipe, task: NextTokenTask, source: Source) -> Iterable[Tensor]:
    stream = Stream([source.stream_source()], recipe.clip, recipe.seed)
    size = recipe.training.micro_batch
    steps = math.ceil(BASELINE_TOKENS / (size * recipe.layout.num_visual))
    for (batch,) in training_batches(
        stream,
        batch_sequences=size,
        micro_batch=size,
        workers=0,
        start_step=0,
        stop_step=steps,
        max_broken=recipe.data.max_broken,
    ):
        yield _codes(_tokenized(task, batch))


def _codes(batch: Batch) -> Tensor:
    assert batch.codes_BTHW is not None
    return batch.codes_BTHW


def _load_initial(init_from: str, tokenizer: Tokenizer, model: AutoregressiveModel) -> None:
    """Start from the weights of another run, whose tokenizer must be the same.

    Raises:
        CheckpointError: other tokenizer, or other weights; each difference is named.
    """
    found = resolve_run(init_from)
    if found.meta.tokenizer != tokenizer.fingerprint():
        raise CheckpointError(
            f"init_from: {found.checkpoint} was trained with another tokenizer than this recipe's. "
            f"Take the tokenizer section of {found.run}/recipe.yaml"
        )
    load_weights(found.checkpoint, model)
    say(f"  weights from {found.checkpoint}")
