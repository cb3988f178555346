"""`toto train`: a recipe becomes a run directory with a trained model."""

from __future__ import annotations

import json
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from toto.data.loader import training_batches
from toto.data.stream import Stream
from toto.errors import CheckpointError, DataError, raised_by_all
from toto.export.hf import RECORD, read_fingerprint, read_model
from toto.jobs.accuracy import HeldOut, evaluation_values, write_accuracies
from toto.jobs.console import console, say
from toto.jobs.held_out import baseline_losses, evaluated, tokenized, validation_batches
from toto.jobs.history import Asked, Origin, note_end, note_failure
from toto.jobs.labelled import labels_of
from toto.jobs.peak import Peak, device_peak
from toto.jobs.realised import FailureLog, describe_draws, realised_mixture
from toto.jobs.setup import begun_run, read_recipe_for, record_run
from toto.jobs.sources import Source, open_sources
from toto.jobs.trained import build_model, fingerprints_in, load_model_weights, resolve_run
from toto.recipe.derived import derived_numbers
from toto.recipe.schemas import Recipe, TrainRecipe
from toto.tasks.config import ModelParts, ModelTaskConfig
from toto.training.checkpoint import check_tensors, read_meta
from toto.training.engine_deepspeed import DeepSpeedEngine
from toto.training.engine_local import LocalEngine
from toto.training.interrupt import WARNINGS, stopped_error
from toto.training.loop import Description, TrainResult, train
from toto.training.progress import make_display
from toto.training.schedule import WarmupCosine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from toto.data.batch import Batch
    from toto.tasks.next_token import ModelTask
    from toto.training.distributed import Ranks
    from toto.training.engine import Engine
    from toto.training.metrics import Values
    from toto.training.rundir import RunDirectory
    from toto.training.task import Task

__all__ = ["run_training", "running_engine", "start_training", "train_task"]

HF_PREFIX = "hf:"


def start_training(
    name: str, overrides: Sequence[str], *, output: str | None, resume: bool
) -> None:
    """Read a recipe and train it.

    Raises:
        RecipeError: its mistakes, all of them.
        UserError: see `run_training`.
    """
    recipe = read_recipe_for(TrainRecipe, name, overrides, output)
    run_training(recipe, resume=resume, asked=Asked(name, tuple(overrides)))


def run_training(recipe: TrainRecipe, *, resume: bool, asked: Asked | None = None) -> TrainResult:
    """Train a recipe to its end, or to a Ctrl-C.

    Args:
        recipe: checked.
        resume: go on with the run that is there.
        asked: what the user typed, for the record.

    Raises:
        UserError: data, run directory or checkpoint do not fit; each says how to mend it; or
            another process trains there.
        RunError: the run had to stop.
        StoppedError: a scheduler's signal stopped it; all is saved.
    """
    with begun_run(recipe, resume=resume) as (settled, ranks, run):
        return _run(settled, ranks, run, asked)


def _run(recipe: TrainRecipe, ranks: Ranks, run: RunDirectory, asked: Asked | None) -> TrainResult:
    tokenizer = recipe.tokenizer.build().eval().to(recipe.training.device)
    target_tokenizer = None
    if recipe.target_tokenizer is not None:
        target_tokenizer = recipe.target_tokenizer.build().eval().to(recipe.training.device)
    sources = ranks.after_first(lambda: open_sources(recipe, tokenizer))
    torch.manual_seed(recipe.seed)
    model = build_model(recipe)
    if recipe.training.recompute:
        model.backbone.recompute_activations()
    assert isinstance(recipe.task, ModelTaskConfig)
    labels = ranks.from_first(lambda: labels_of(recipe, sources))
    scored = ranks.after_first(lambda: HeldOut.of(sources, labels))
    parts = ModelParts(model, tokenizer, target_tokenizer, len(sources), labels)
    task = recipe.task.build(parts)
    init_from = recipe.init_from
    if init_from is not None and run.checkpoint is None:
        init_from = _load_initial(init_from, task)
        if ranks.is_first:
            say(f"  weights from {init_from}")
    origin = Origin(asked, init_from)
    with running_engine(recipe, task, ranks) as engine:
        result = _trained(recipe, task, engine, sources, ranks, run, origin)
        if labels is not None and not result.interrupted:
            labelled = [sources[number] for number in labels.sources]
            write_accuracies(
                recipe, task, engine, scored, labelled=labelled,
                num_classes=labels.num_classes, ranks=ranks, run=run, step=result.step,
            )  # fmt: skip
        return result


def _trained(
    recipe: TrainRecipe,
    task: ModelTask,
    engine: Engine[Batch],
    sources: Sequence[Source],
    ranks: Ranks,
    run: RunDirectory,
    origin: Origin,
) -> TrainResult:
    held_out = {
        source.name: [tokenized(task, batch) for batch in validation_batches(recipe, source, ranks)]
        for source in sources
        if source.validation is not None
    }
    baselines = baseline_losses(recipe, task, sources, held_out, ranks)

    def evaluate() -> dict[str, Values]:
        return {
            name: evaluation_values(task, evaluated(engine, batches, ranks))
            | baselines.get(name, {})
            for name, batches in held_out.items()
        }

    return train_task(
        recipe,
        engine,
        sources,
        ranks=ranks,
        run=run,
        fingerprints=_fingerprints(task),
        evaluate=evaluate if held_out else None,
        origin=origin,
    )


@contextmanager
def running_engine(recipe: Recipe, task: Task[Batch], ranks: Ranks) -> Iterator[Engine[Batch]]:
    """The engine of a recipe whose machine is settled, compiled if the recipe says so.

    It is closed with the block.
    """
    training = recipe.training
    schedule = WarmupCosine(recipe.schedule, peak=recipe.optimizer.lr, steps=training.steps)
    engine: Engine[Batch]
    if training.engine == "deepspeed":
        engine = DeepSpeedEngine(task, training, recipe.optimizer, schedule, ranks=ranks)
    else:
        assert training.precision != "auto"
        engine = LocalEngine(
            task,
            recipe.optimizer,
            schedule,
            device=torch.device(training.device),
            precision=training.precision,
        )
    with closing(engine):
        if training.compile:
            engine.compile()
        yield engine


def train_task(
    recipe: Recipe,
    engine: Engine[Batch],
    sources: Sequence[Source],
    *,
    ranks: Ranks,
    run: RunDirectory,
    fingerprints: dict[str, str],
    evaluate: Callable[[], dict[str, Values]] | None,
    origin: Origin,
) -> TrainResult:
    """Run the loop over the mixture of a recipe, whatever the task, and say how it ended.

    Args:
        recipe: its machine is settled.
        engine: what is trained.
        sources: the mixture, opened.
        ranks: this process and the others of the run.
        run: where to write and what to go on from.
        fingerprints: of the frozen tokenizers, by their section in the recipe.
        evaluate: see `toto.training.loop.train`.
        origin: for the record: what the user typed, and the parent run.

    Raises:
        UserError: the data or tokenizers are not those of the run that is resumed, or not the same
            on all ranks.
        RunError: the run had to stop.
        StoppedError: a scheduler's signal stopped it; all is saved.
    """
    stream = Stream([source.stream_source() for source in sources], recipe.clip, recipe.seed)
    stream.require_one_form()
    data = {source.name: source.train.fingerprint() for source in sources}
    _require_same_inputs(data, fingerprints, ranks, run)
    seconds_at_peak = ranks.from_first(lambda: _begun(recipe, ranks, run, origin))
    with note_failure(run.path) if ranks.is_first else nullcontext():
        result = train(
            engine,
            recipe.training,
            ranks=ranks,
            run=run,
            batches=_batches(recipe, stream, ranks, run),
            evaluate=evaluate,
            tokens_per_step=recipe.batch_sequences * recipe.layout.num_visual,
            seed=recipe.seed,
            description=Description(
                recipe.model_dump(mode="json"),
                tokenizer=fingerprints.get("tokenizer"),
                target_tokenizer=fingerprints.get("target_tokenizer"),
                data=data,
            ),
            display=make_display(ranks, console),
            sources=stream.names,
            seconds_at_peak=seconds_at_peak,
        )
    if ranks.is_first:
        note_end(run.path, step=result.step, interrupted=result.interrupted)
        _say_how_it_ended(recipe, run, stream, result)
    if result.stopped_by in WARNINGS:
        raise raised_by_all(stopped_error(result.stopped_by))
    return result


def _batches(
    recipe: Recipe, stream: Stream, ranks: Ranks, run: RunDirectory
) -> Callable[[int, int], Iterator[Sequence[Batch]]]:
    """(first step, stop step) → this rank's micro-batches; what is undecodable goes to the log."""
    failures = FailureLog(run.path, stream.names, ranks.rank)

    def batches(start_step: int, stop_step: int) -> Iterator[Sequence[Batch]]:
        return training_batches(
            stream,
            batch_sequences=recipe.batch_sequences,
            micro_batch=recipe.training.micro_batch,
            workers=recipe.data.workers,
            start_step=start_step,
            stop_step=stop_step,
            max_broken=recipe.data.max_broken,
            rank=ranks.rank,
            world=ranks.world,
            on_broken=failures.add,
        )

    return batches


def _begun(recipe: Recipe, ranks: Ranks, run: RunDirectory, origin: Origin) -> float | None:
    """Write down that the run begins or goes on; the seconds of a step at the device's peak."""
    peak, seconds_at_peak = _peak(recipe, ranks.world)
    record_run(recipe, ranks, run, origin=origin, peak=peak)
    first = 0 if run.checkpoint is None else read_meta(run.checkpoint).step
    FailureLog.cut_back(run.path, first)
    return seconds_at_peak


def _say_how_it_ended(
    recipe: Recipe, run: RunDirectory, stream: Stream, result: TrainResult
) -> None:
    drawn = realised_mixture(
        stream, result.step * recipe.batch_sequences, FailureLog.read(run.path)
    )
    for line in describe_draws(drawn, recipe.layout.num_visual):
        say(f"  {line}")
    if result.stopped_by is not None:
        name = result.stopped_by.name
        say(f"stopped by {name} after step {result.step}; saved {result.checkpoint}")
        say("the same command with --resume goes on")
    else:
        say(f"done: {result.step} steps in {result.seconds:.0f} s; saved {result.checkpoint}")


def _peak(recipe: Recipe, world: int) -> tuple[Peak | None, float | None]:
    """The peak of this rank's device, and the seconds of a step of the model at that of all ranks.

    None where the model's multiply-accumulates are not known: of tokenizers.
    """
    macs = derived_numbers(recipe).get("train_macs_per_step")
    training = recipe.training
    if macs is None or training.precision == "auto":
        return None, None
    peak = device_peak(torch.device(training.device), training.precision)
    say(f"  peak: {peak.flops:.3g} FLOP/s, {peak.origin}")
    return peak, 2 * macs / (peak.flops * world)


def _require_same_inputs(
    data: dict[str, str], fingerprints: dict[str, str], ranks: Ranks, run: RunDirectory
) -> None:
    """Refuse ranks, or a run to go on with, that have other data or tokenizers than these."""
    ranks.require_same({f"data.sources.{name}": found for name, found in data.items()})
    ranks.require_same(fingerprints)
    if run.checkpoint is not None:
        _refuse_other_data(data, run.checkpoint)
        _refuse_other_tokenizers(fingerprints, run.checkpoint)


def _refuse_other_data(data: dict[str, str], checkpoint: Path) -> None:
    before = read_meta(checkpoint).data
    changed = [name for name, fingerprint in data.items() if before.get(name) != fingerprint]
    if before and changed:  # a checkpoint of before 2026-11-21 does not say
        raise DataError(
            f"data.sources.{', data.sources.'.join(changed)}: not the data that {checkpoint} was "
            "trained on: packed anew, or with other samples excluded. A resumed run is the same "
            "run: put the data back, or begin another run with --output"
        )


def _refuse_other_tokenizers(fingerprints: dict[str, str], checkpoint: Path) -> None:
    changed = sorted(dict(fingerprints_in(read_meta(checkpoint)).items() ^ fingerprints.items()))
    if changed:
        raise CheckpointError(
            f"{', '.join(changed)}: not the weights that {checkpoint} was trained with. A resumed "
            "run is the same run: put them back, or begin another run with --output"
        )


def _fingerprints(task: ModelTask) -> dict[str, str]:
    """Section of the recipe → fingerprint, of each tokenizer that the weights depend on."""
    found = {"tokenizer": task.tokenizer.fingerprint()}
    if task.target_tokenizer is not None:
        found["target_tokenizer"] = task.target_tokenizer.fingerprint()
    return found


def _load_initial(init_from: str, task: ModelTask) -> str:
    """Start from the weights of another run, whose tokenizers must be the same, or of hf:FOLDER.

    Returns:
        The very checkpoint, or hf:FOLDER.

    Raises:
        CheckpointError: other tokenizers, or other weights; each difference is named.
        UserError: what stands in the folder is no model like this.
    """
    if init_from.startswith(HF_PREFIX):
        folder = Path(init_from.removeprefix(HF_PREFIX))
        if read_fingerprint(folder) not in (None, task.tokenizer.fingerprint()):
            raise CheckpointError(
                f"init_from: {folder} takes the codes of another tokenizer than this recipe's. "
                f"{folder / RECORD} says of which"
            )
        tensors = read_model(folder, task.model)
        check_tensors(task.model.state_dict(), tensors, "weights")
        task.model.load_state_dict(tensors)
        return init_from
    found = resolve_run(init_from)
    changed = dict(fingerprints_in(found.meta).items() ^ _fingerprints(task).items())
    if changed:
        recorded = found.recipe.model_dump(mode="json")
        theirs = [f"{name}: {json.dumps(recorded[name])}" for name in sorted(changed)]
        raise CheckpointError(
            f"init_from: {found.checkpoint} was trained with another "
            f"{' and another '.join(sorted(changed))} than this recipe's. Its recipe says "
            f"{'; '.join(theirs)}"
        )
    load_model_weights(found, task.model)
    return str(found.checkpoint)
