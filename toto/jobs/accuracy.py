"""What the classifiers of a run score on held-out data: as it trains, and at its end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import torch

from toto.analysis.evaluations import CLASSES, FINETUNED
from toto.data.clips import LabelledDataset
from toto.evaluation.results import ProbeResults, ProbeRow, wilson_interval
from toto.folders import new_folder
from toto.jobs.console import progress_bar, say
from toto.jobs.held_out import evaluated
from toto.jobs.labelled import labelled_samples
from toto.jobs.result_folder import named_folder
from toto.training.metrics import metric_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from toto.data.batch import Batch
    from toto.jobs.sources import Source
    from toto.recipe.schemas import TrainRecipe
    from toto.tasks.config import Labels
    from toto.tasks.next_token import ModelTask
    from toto.training.distributed import Ranks
    from toto.training.engine import Engine
    from toto.training.metrics import Values
    from toto.training.rundir import RunDirectory
    from toto.training.task import Mean

__all__ = ["ACCURACY", "HeldOut", "evaluation_values", "write_accuracies"]

ACCURACY = "accuracy"


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


@dataclass(frozen=True)
class HeldOut:
    """One clip of each held-out sample with a label, a picture by itself, as `toto probe` has them.

    Attributes:
        source: where they are from.
        number: of the source in the mixture.
        clips: the samples.
    """

    source: Source
    number: int
    clips: LabelledDataset

    @classmethod
    def of(cls, sources: Sequence[Source], labels: Labels | None) -> list[HeldOut]:
        """Of all sources whose labels are learned and that have held-out data.

        Raises:
            DataError: a video that is shorter than a clip.
        """
        return [
            cls(source, number, LabelledDataset(source.validation, source.clip))
            for number, source in enumerate(sources)
            if labels is not None and number in labels.sources and source.validation is not None
        ]

    def batches(self, size: int, ranks: Ranks) -> Iterator[Batch]:
        """This rank's part, `size` a batch; all ranks have as many batches, the last as padding."""
        firsts = range(0, len(self.clips), size)
        mine = [*firsts[ranks.rank :: ranks.world]]
        lacks = ranks.rank >= len(firsts) % ranks.world > 0
        for first in [*mine, 0] if lacks else mine:
            order = range(first, min(first + size, len(self.clips)))
            (batch,) = self.clips.batches(order, size)
            source_B = torch.full_like(batch.source_B, self.number)
            yield replace(batch, source_B=source_B, padding=lacks and first not in mine)


def write_accuracies(
    recipe: TrainRecipe,
    task: ModelTask,
    engine: Engine[Batch],
    held_out: Sequence[HeldOut],
    *,
    labelled: Sequence[Source],
    num_classes: int,
    ranks: Ranks,
    run: RunDirectory,
    step: int,
) -> None:
    """Score every classifier on all held-out samples, and write it down.

    results.jsonl and summary.json under RUN/eval, in a folder of the step that was scored.
    """
    batches = chain.from_iterable(_shown(recipe, part, ranks) for part in held_out)
    counted = evaluated(engine, batches, ranks).get(ACCURACY)
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
                weight_decay=recipe.optimizer.weight_decay,
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
    evaluation = FINETUNED if len(rows) > 1 else CLASSES
    protocol = recipe.task.model_dump(mode="json")
    conditions: dict[str, object] = {
        "data": {source.name: source.train.fingerprint() for source in labelled},
        "validation": {
            part.source.name: part.source.validation.fingerprint()
            for part in held_out
            if part.source.validation is not None
        },
        "precision": recipe.training.precision,
        "device": recipe.training.device,
    }
    names = [part.source.name for part in held_out]
    decisive = {"step": step, "protocol": protocol, "conditions": conditions}
    folder = named_folder(run.path, evaluation, "+".join(names), decisive)
    with new_folder(folder) as unfinished:
        results.write(
            unfinished,
            evaluation=evaluation,
            source=", ".join(names),
            step=step,
            protocol=protocol,
            conditions=conditions,
        )
    say(results.summary())
    say(f"{folder}: results.jsonl, summary.json")


def _shown(recipe: TrainRecipe, part: HeldOut, ranks: Ranks) -> Iterator[Batch]:
    """Its batches, each of about as many tokens as a micro-batch has."""
    pictures = part.source.train.kind == "images"
    size = recipe.training.micro_batch * (recipe.clip.frames if pictures else 1)
    total = -(-len(part.clips) // (size * ranks.world))
    with progress_bar(f"scoring {part.source.name}", "batches") as progress:
        for done, batch in enumerate(part.batches(size, ranks), start=1):
            yield batch
            progress(done, total)


def _epochs(recipe: TrainRecipe, labelled: Sequence[Source], samples: int) -> float:
    """How often the run has gone through the labelled data."""
    weights = {name: source.weight for name, source in recipe.data.sources.items()}
    share = sum(source.weight for source in labelled) / sum(weights.values())
    a_sequence = recipe.clip.frames if labelled[0].train.kind == "images" else 1
    return recipe.training.steps * recipe.batch_sequences * share * a_sequence / samples
