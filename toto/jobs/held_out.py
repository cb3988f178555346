"""The held-out data of a run: its batches, and what a model must beat on them."""

from __future__ import annotations

import json
import math
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from toto.analysis.records import json_object
from toto.data.loader import evaluation_batches, training_batches
from toto.data.stream import Stream
from toto.jobs.console import progress_bar
from toto.tasks.baselines import TokenBaselines
from toto.tasks.config import ClassifyConfig
from toto.training.metrics import metric_values
from toto.training.task import sum_metrics

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence
    from pathlib import Path

    from torch import Tensor

    from toto.data.batch import Batch
    from toto.jobs.sources import Source
    from toto.recipe.schemas import Recipe, TrainRecipe
    from toto.tasks.next_token import ModelTask
    from toto.training.distributed import Ranks
    from toto.training.engine import Engine
    from toto.training.metrics import Values
    from toto.training.rundir import RunDirectory
    from toto.training.task import Mean

__all__ = [
    "BASELINES_FILE",
    "Baselines",
    "baseline_tokens",
    "baselines_of",
    "evaluated",
    "tokenized",
    "validation_batches",
]

BASELINES_FILE = "baselines.json"

# What the baselines of a source are fitted on: see `baseline_tokens`; and of a small source no more
# than so many epochs, each with other crops.
BASELINE_TOKENS = 2**18
SMALL_BASELINE_TOKENS = 2**14
BASELINE_EPOCHS = 64


def validation_batches(recipe: Recipe, source: Source, ranks: Ranks) -> list[Batch]:
    """This rank's part of the held-out sequences of a source that every evaluation sees."""
    assert source.validation is not None
    return list(
        evaluation_batches(
            source.validation,
            source.clip,
            micro_batch=recipe.training.micro_batch,
            count=recipe.training.eval_sequences,
            source=list(recipe.data.sources).index(source.name),
            rank=ranks.rank,
            world=ranks.world,
        )
    )


def evaluated(engine: Engine[Batch], batches: Iterable[Batch], ranks: Ranks) -> dict[str, Mean]:
    """The metrics of all ranks' batches; this rank has as many as the others."""
    return ranks.total(sum_metrics(engine.evaluate(batch) for batch in batches))


def tokenized(task: ModelTask, batch: Batch) -> Batch:
    """The batch as codes, so that each evaluation does not tokenize anew; patches stay pixels."""
    if task.tokenizer.config.output == "patches":
        return batch
    return replace(batch, pixels_BTCHW=None, codes_BTHW=_target_codes(task, batch))


@dataclass(frozen=True)
class Baselines:
    """What the model must beat on each source's validation data; RUN/baselines.json holds it.

    Attributes:
        by_source: name of a source → what was counted (`of`) and the losses on its validation data
            (`losses`), scalars and one number a frame. Empty where there is nothing to count.
    """

    by_source: dict[str, dict[str, Any]]

    def losses(self, source: str) -> Values:
        """Return the losses on a source's validation data; none where nothing was counted."""
        found: Values = self.by_source.get(source, {}).get("losses", {})
        return found

    def text(self) -> str:
        """Return the content of RUN/baselines.json."""
        return json.dumps(self.by_source, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Baselines:
        """Read RUN/baselines.json; a run that has none has none counted."""
        return cls(json_object(path.read_bytes(), str(path)) if path.is_file() else {})


def baselines_of(
    recipe: TrainRecipe,
    task: ModelTask,
    sources: Sequence[Source],
    held_out: dict[str, list[Batch]],
    *,
    fingerprints: dict[str, str],
    ranks: Ranks,
    run: RunDirectory,
) -> Baselines:
    """Return the losses of the unigram and of copying the last frame, fitted on training data.

    The first rank fits them, once: they do not change as the model learns, and a run that is
    resumed takes them from RUN/baselines.json. Patch targets have none: there is nothing to count.
    Neither has a model that predicts classes, nor a recipe with `training.baselines: false`.
    """
    counts = recipe.training.baselines and recipe.target.output != "patches"
    if not counts or isinstance(recipe.task, ClassifyConfig):
        return Baselines({})
    before = ranks.from_first(lambda: Baselines.read(run.path / BASELINES_FILE))
    found = {}
    for source in sources:
        if source.name not in held_out:
            continue
        of = _counted(recipe, source, fingerprints)
        stored = before.by_source.get(source.name, {})
        if stored.get("of") == of:
            found[source.name] = stored
            continue
        fitted = ranks.from_first(partial(_fitted_baselines, recipe, task, source))
        skip = recipe.mask.frames or 0
        parts = [
            fitted.losses(_target_codes(task, batch), skip_frames=skip)
            for batch in held_out[source.name]
            if not batch.padding
        ]
        losses = metric_values(ranks.total(sum_metrics(parts)))
        found[source.name] = {"of": of, "losses": losses}
    return Baselines(found)


def _counted(recipe: TrainRecipe, source: Source, fingerprints: dict[str, str]) -> dict[str, Any]:
    """Return all that the baselines of a source depend on, as JSON has it."""
    assert source.validation is not None
    return {
        "tokens": baseline_tokens(recipe),
        "train": source.train.fingerprint(),
        "validation": source.validation.fingerprint(),
        "validation_sequences": recipe.training.eval_sequences,
        "tokenizers": fingerprints,
        "clip": source.clip.model_dump(mode="json"),
        "given_frames": recipe.mask.frames or 0,
        "seed": recipe.seed,
    }


def baseline_tokens(recipe: TrainRecipe) -> int:
    """Return the most visual tokens of a source that its baselines are fitted on.

    They are a tenth of those that the run trains on, so that counting does not cost more than
    training: at least SMALL_BASELINE_TOKENS, at most BASELINE_TOKENS, never more than the run has.
    """
    trained = recipe.training.steps * recipe.batch_sequences * recipe.layout.num_visual
    return min(BASELINE_TOKENS, max(trained // 10, SMALL_BASELINE_TOKENS), trained)


def _fitted_baselines(recipe: TrainRecipe, task: ModelTask, source: Source) -> TokenBaselines:
    with closing(_counted_batches(recipe, source)) as batches:
        training = (_target_codes(task, batch) for batch in batches)
        return TokenBaselines.fit(training, recipe.target.codebook_size)


def _counted_batches(recipe: TrainRecipe, source: Source) -> Generator[Batch, None, None]:
    """Yield what the baselines of a source are fitted on; decoding and encoding takes a while."""
    stream = Stream([source.stream_source()], recipe.clip, recipe.seed)
    size = recipe.training.micro_batch
    sequences = min(
        baseline_tokens(recipe) / recipe.layout.num_visual,
        BASELINE_EPOCHS * stream.sources[0].sequences_per_epoch,
    )
    steps = math.ceil(sequences / size)
    batches = training_batches(
        stream,
        batch_sequences=size,
        micro_batch=size,
        workers=0,
        start_step=0,
        stop_step=steps,
        max_broken=recipe.data.max_broken,
    )
    with progress_bar(f"baselines: counting tokens of {source.name}", "batches") as progress:
        for done, (batch,) in enumerate(batches, start=1):
            yield batch
            progress(done, steps)


def _target_codes(task: ModelTask, batch: Batch) -> Tensor:
    """`codes_BTHW` that the model shall predict, on the CPU."""
    device = next(task.model.parameters()).device
    _, codes_BTHW = task.tokens(batch.to(device))
    return codes_BTHW.cpu()
