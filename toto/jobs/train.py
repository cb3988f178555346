"""`toto train`: a recipe becomes a run directory with a trained model."""

from __future__ import annotations

from contextlib import ExitStack, closing, contextmanager, nullcontext
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from toto.data.loader import training_batches
from toto.data.stream import Stream
from toto.data.verification import ShardVerification
from toto.errors import CheckpointError, DataError, raised_by_all
from toto.jobs.accuracy import HeldOut, evaluation_values, write_accuracies
from toto.jobs.console import console, say
from toto.jobs.held_out import (
    BASELINES_FILE,
    baselines_of,
    evaluated,
    tokenized,
    validation_batches,
)
from toto.jobs.history import Asked, Origin, note_end, note_failure
from toto.jobs.initial import find_initial
from toto.jobs.labelled import labels_of
from toto.jobs.peak import Peak, device_peak
from toto.jobs.realised import FailureLog, describe_draws, realised_mixture
from toto.jobs.setup import begun_run, read_recipe_for, record_run
from toto.jobs.sources import Source, open_sources, root_explained
from toto.jobs.trained import build_model, fingerprints_in
from toto.recipe.derived import derived_numbers
from toto.recipe.schemas import Recipe, TrainRecipe
from toto.tasks.config import ModelParts, ModelTaskConfig
from toto.training.checkpoint import read_meta, verify_weights
from toto.training.engine_deepspeed import DeepSpeedEngine
from toto.training.engine_local import LocalEngine
from toto.training.interrupt import stopped_error
from toto.training.loop import Description, TrainResult, train
from toto.training.progress import make_display
from toto.training.schedule import WarmupCosine
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
    from pathlib import Path

    from toto.data.batch import Batch
    from toto.tasks.next_token import ModelTask
    from toto.training.distributed import Ranks
    from toto.training.engine import Engine
    from toto.training.metrics import Values
    from toto.training.rundir import RunDirectory
    from toto.training.task import Task

__all__ = ["run_training", "running_engine", "start_training", "train_task"]


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
    """Train a recipe to its end; a run that is finished is left as it is.

    Args:
        recipe: checked.
        resume: go on with the run that is there.
        asked: what the user typed, for the record.

    Raises:
        UserError: data, run directory or checkpoint do not fit; each says how to mend it; or
            another process trains there.
        RunError: the run had to stop.
        StoppedError: a scheduler's signal stopped it; all is saved.
        CancelledError: Ctrl-C did; all is saved.
    """
    with begun_run(recipe, resume=resume) as (settled, ranks, run):
        if run.finished:
            return _finished(run)
        return _run(settled, ranks, run, asked)


def _finished(run: RunDirectory) -> TrainResult:
    assert run.checkpoint is not None
    meta = verify_weights(run.checkpoint)
    return TrainResult(meta.step, meta.seconds, run.checkpoint, None)


def _run(recipe: TrainRecipe, ranks: Ranks, run: RunDirectory, asked: Asked | None) -> TrainResult:
    tokenizer = recipe.tokenizer.build().eval().to(recipe.training.device)
    target_tokenizer = None
    if recipe.target_tokenizer is not None:
        target_tokenizer = recipe.target_tokenizer.build().eval().to(recipe.training.device)
    initial = None
    if recipe.init_from is not None and run.checkpoint is None:
        # Before the data: `data.tokens: once` may encode them for hours.
        initial = find_initial(recipe, tokenizer, target_tokenizer)
    with root_explained(recipe.data.root, run.path):
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
    if initial is not None:
        initial.load(model)
        init_from = initial.origin
        if ranks.is_first:
            say(f"  weights from {init_from}")
            for note in initial.notes:
                say(f"    {note}")
    origin = Origin(asked, init_from)
    with running_engine(recipe, task, ranks) as engine:

        def finish() -> None:
            if labels is not None:
                write_accuracies(
                    recipe, task, engine, scored,
                    labelled=[sources[number] for number in labels.sources],
                    num_classes=labels.num_classes, ranks=ranks, run=run,
                    step=recipe.training.steps,
                )  # fmt: skip

        return _trained(recipe, task, engine, sources, ranks, run, origin, finish)


def _trained(
    recipe: TrainRecipe,
    task: ModelTask,
    engine: Engine[Batch],
    sources: Sequence[Source],
    ranks: Ranks,
    run: RunDirectory,
    origin: Origin,
    finish: Callable[[], None],
) -> TrainResult:
    held_out = {
        source.name: [tokenized(task, batch) for batch in validation_batches(recipe, source, ranks)]
        for source in sources
        if source.validation is not None
    }
    fingerprints = _fingerprints(task, run)
    baselines = baselines_of(
        recipe, task, sources, held_out, fingerprints=fingerprints, ranks=ranks, run=run
    )

    def evaluate() -> dict[str, Values]:
        return {
            name: evaluation_values(task, evaluated(engine, batches, ranks))
            | baselines.losses(name)
            for name, batches in held_out.items()
        }

    return train_task(
        recipe,
        engine,
        sources,
        ranks=ranks,
        run=run,
        fingerprints=fingerprints,
        evaluate=evaluate if held_out else None,
        finish=finish,
        origin=origin,
        files={BASELINES_FILE: baselines.text()},
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
    finish: Callable[[], None],
    origin: Origin,
    files: Mapping[str, str] = MappingProxyType({}),
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
        finish: called on all ranks once all steps are done; the run has not ended well without it.
        origin: for the record: what the user typed, and the parent run.
        files: small files of the run, by name, that are written as it begins.

    Raises:
        UserError: the data or tokenizers are not those of the run that is resumed, or not the same
            on all ranks.
        RunError: the run had to stop.
        StoppedError: a scheduler's signal stopped it; all is saved.
        CancelledError: Ctrl-C did; all is saved.
    """
    stream = Stream([source.stream_source() for source in sources], recipe.clip, recipe.seed)
    stream.require_one_form()
    data = {source.name: source.train.fingerprint() for source in sources}
    _require_same_inputs(data, fingerprints, ranks, run)
    with ExitStack() as held:
        verification = held.enter_context(_verification(recipe, sources, ranks))
        _require_undamaged(verification, ranks)
        seconds_at_peak = ranks.from_first(lambda: _begun(recipe, ranks, run, origin, files))
        held.enter_context(note_failure(run.path) if ranks.is_first else nullcontext())
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
            damage=lambda: verification.fault,
        )
        if not result.interrupted:
            finish()
    if ranks.is_first:
        note_end(run.path, step=result.step, interrupted=result.interrupted)
        if verification.done < verification.total:
            done = f"{verification.done:,} of {verification.total:,}"
            say(f"  shards compared with their checksums so far: {done}")
        _say_how_it_ended(recipe, run, stream, result)
    if result.stopped_by is not None:
        raise raised_by_all(stopped_error(result.stopped_by))
    return result


def _verification(recipe: Recipe, sources: Sequence[Source], ranks: Ranks) -> ShardVerification:
    """This rank's part of the verification of all datasets that the run reads."""
    datasets = [
        dataset
        for source in sources
        for dataset in (source.train, source.validation)
        if dataset is not None
    ]
    if recipe.data.verify == "off":
        if ranks.is_first:
            say("  data.verify is off: shards are not compared with their checksums")
        datasets = []
    return ShardVerification(datasets, rank=ranks.rank, world=ranks.world)


def _require_undamaged(verification: ShardVerification, ranks: Ranks) -> None:
    """Refuse to begin or resume on damage that is found before the first step.

    Raises:
        DataError: names the shard.
    """
    fault = next(filter(None, ranks.gather(verification.fault)), None)
    if fault is not None:
        raise raised_by_all(DataError(f"{fault}. Copy it again, or pack the dataset again"))


def _batches(
    recipe: Recipe, stream: Stream, ranks: Ranks, run: RunDirectory
) -> Callable[[int, int], Generator[Sequence[Batch], None, None]]:
    """(first step, stop step) → this rank's micro-batches; what is undecodable goes to the log."""
    failures = FailureLog(run.path, stream.names, ranks.rank)

    def batches(start_step: int, stop_step: int) -> Generator[Sequence[Batch], None, None]:
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


def _begun(
    recipe: Recipe, ranks: Ranks, run: RunDirectory, origin: Origin, files: Mapping[str, str]
) -> float | None:
    """Record that the run begins or resumes; return the seconds of a step at the device's peak."""
    for name, text in files.items():
        run.write_text(name, text)
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
        say(
            f"done: {number_of(result.step, 'step')} in {result.seconds:.0f} s; saved "
            f"{result.checkpoint}"
        )


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
    recorded = fingerprints_in(read_meta(checkpoint))
    changed = sorted(dict(recorded.items() ^ fingerprints.items()))
    if changed:
        raise CheckpointError(
            f"{', '.join(changed)}: not the weights that {checkpoint} was trained with. A resumed "
            "run is the same run: put them back, or begin another run with --output"
        )


def _fingerprints(task: ModelTask, run: RunDirectory) -> dict[str, str]:
    """Section of the recipe → fingerprint, of each tokenizer that the weights depend on.

    A resumed run keeps the fingerprint that its checkpoints record, where it means the same.
    """
    recorded = {} if run.checkpoint is None else fingerprints_in(read_meta(run.checkpoint))
    tokenizers = {"tokenizer": task.tokenizer, "target_tokenizer": task.target_tokenizer}
    found = {}
    for section, tokenizer in tokenizers.items():
        if tokenizer is not None:
            before = recorded.get(section)
            if before is None or not tokenizer.has_fingerprint(before):
                before = tokenizer.fingerprint()
            found[section] = before
    return found
