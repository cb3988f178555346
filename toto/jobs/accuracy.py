"""What the classifiers of a run score on held-out data: as it trains, and at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toto.data.loader import evaluation_batches
from toto.data.stream import SourceStream
from toto.evaluation.results import ProbeResults, ProbeRow, wilson_interval
from toto.jobs.console import progress_bar, say
from toto.jobs.held_out import evaluated
from toto.jobs.labelled import labelled_samples
from toto.training.metrics import metric_values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from toto.data.batch import Batch
    from toto.jobs.sources import Source
    from toto.recipe.schemas import TrainRecipe
    from toto.tasks.next_token import ModelTask
    from toto.training.distributed import Ranks
    from toto.training.engine import Engine
    from toto.training.metrics import Values
    from toto.training.rundir import RunDirectory
    from toto.training.task import Mean

__all__ = ["ACCURACY", "evaluation_values", "write_accuracies"]

ACCURACY = "accuracy"
PROBE_FOLDER = "probe"
CLASSIFIER_FOLDER = "classify"


def evaluation_values(task: ModelTask, metrics: dict[str, Mean]) -> Values:
    """What an evaluation records of a source.

    The accuracies of probes become lists by layer, `accuracy/POOLING/RATE` each, and `accuracy` is
    the best of all.
    """
    values = metric_values({name: mean for name, mean in metrics.items() if name != ACCURACY})
    if ACCURACY not in metrics:
        return values
    found: list[float] = metrics[ACCURACY].value().tolist()
    values[ACCURACY] = max(found)
    if len(found) == 1:
        return values
    by_layer: dict[str, list[float]] = {}
    for probe, value in zip(task.classifiers, found, strict=True):
        by_layer.setdefault(f"{ACCURACY}/{probe.head.label}/{probe.lr:g}", []).append(value)
    return values | by_layer


def write_accuracies(
    recipe: TrainRecipe,
    task: ModelTask,
    engine: Engine[Batch],
    labelled: list[Source],
    *,
    num_classes: int,
    ranks: Ranks,
    run: RunDirectory,
    step: int,
) -> None:
    """Score every classifier on all held-out sequences of the labelled sources, and write it down.

    RUN/probe/results.jsonl and summary.json of probes, RUN/classify of a model that classifies.
    """
    held_out = [source for source in labelled if source.validation is not None]
    counted = evaluated(engine, _all_batches(recipe, held_out, ranks), ranks).get(ACCURACY)
    if not ranks.is_first:
        return
    if counted is None:
        say("no labelled source has held-out samples with labels: nothing is scored")
        return
    rows = []
    columns = (task.classifiers, counted.total.tolist(), counted.count.tolist())
    for probe, hits, count in zip(*columns, strict=True):
        low, high = wilson_interval(hits, count)
        rows.append(
            ProbeRow(
                layer=probe.layer,
                head=probe.head.label,
                lr=recipe.optimizer.lr if probe.lr is None else probe.lr,
                accuracy=hits / count,
                low=low,
                high=high,
                loss=None,
                chance=1 / num_classes,
            )
        )
    samples = sum(labelled_samples(source.train) for source in labelled)
    results = ProbeResults(
        tuple(rows), samples, round(counted.count[0].item()), _epochs(recipe, labelled, samples)
    )
    folder = run.path / (PROBE_FOLDER if len(rows) > 1 else CLASSIFIER_FOLDER)
    results.write(folder, source=", ".join(source.name for source in held_out), step=step)
    say(results.summary())
    say(f"{folder}: results.jsonl, summary.json")


def _all_batches(recipe: TrainRecipe, sources: list[Source], ranks: Ranks) -> Iterator[Batch]:
    """Every held-out sequence, this rank's part."""
    size = recipe.training.micro_batch
    for source in sources:
        assert source.validation is not None
        sequences = SourceStream.in_order(source.validation, source.clip).sequences_per_epoch
        total = -(-sequences // (size * ranks.world))
        with progress_bar(f"scoring {source.name}", "batches") as progress:
            batches = evaluation_batches(
                source.validation,
                source.clip,
                micro_batch=size,
                source=list(recipe.data.sources).index(source.name),
                rank=ranks.rank,
                world=ranks.world,
            )
            for done, batch in enumerate(batches, start=1):
                yield batch
                progress(done, total)


def _epochs(recipe: TrainRecipe, labelled: list[Source], samples: int) -> float:
    """How often the run has gone through the labelled data."""
    weights = {name: source.weight for name, source in recipe.data.sources.items()}
    share = sum(source.weight for source in labelled) / sum(weights.values())
    a_sequence = recipe.clip.frames if labelled[0].train.kind == "images" else 1
    return recipe.training.steps * recipe.batch_sequences * share * a_sequence / samples
