"""The held-out data of a run: its batches, and what a model must beat on them."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from toto.data.loader import evaluation_batches, training_batches
from toto.data.stream import Stream
from toto.jobs.console import progress_bar
from toto.tasks.baselines import TokenBaselines
from toto.tasks.config import ClassifyConfig
from toto.training.metrics import metric_values
from toto.training.task import sum_metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from toto.data.batch import Batch
    from toto.jobs.sources import Source
    from toto.recipe.schemas import Recipe, TrainRecipe
    from toto.tasks.next_token import ModelTask
    from toto.training.distributed import Ranks
    from toto.training.engine import Engine
    from toto.training.metrics import Values
    from toto.training.task import Mean

__all__ = ["baseline_losses", "evaluated", "tokenized", "validation_batches"]

# What the baselines of a source are fitted on: so many visual tokens, and of a small source no more
# than so many epochs, each with other crops.
BASELINE_TOKENS = 2**18
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


def baseline_losses(
    recipe: TrainRecipe,
    task: ModelTask,
    sources: Sequence[Source],
    held_out: dict[str, list[Batch]],
    ranks: Ranks,
) -> dict[str, Values]:
    """Unigram and copy-the-last-frame on each source's held-out data, fitted on its training data.

    The first rank fits them. They do not change as the model learns. Patch targets have none:
    there is nothing to count. Neither has a model that predicts classes.
    """
    if recipe.target.output == "patches" or isinstance(recipe.task, ClassifyConfig):
        return {}
    losses = {}
    for source in sources:
        if source.name not in held_out:
            continue
        fitted = ranks.from_first(partial(_fitted_baselines, recipe, task, source))
        skip = recipe.mask.frames or 0
        parts = [
            fitted.losses(_target_codes(task, batch), skip_frames=skip)
            for batch in held_out[source.name]
            if not batch.padding
        ]
        losses[source.name] = metric_values(ranks.total(sum_metrics(parts)))
    return losses


def _fitted_baselines(recipe: TrainRecipe, task: ModelTask, source: Source) -> TokenBaselines:
    training = (_target_codes(task, batch) for batch in _counted_batches(recipe, source))
    return TokenBaselines.fit(training, recipe.target.codebook_size)


def _counted_batches(recipe: TrainRecipe, source: Source) -> Iterator[Batch]:
    """What the baselines of a source are fitted on: decoding and encoding it may take a while."""
    stream = Stream([source.stream_source()], recipe.clip, recipe.seed)
    size = recipe.training.micro_batch
    sequences = min(
        BASELINE_TOKENS / recipe.layout.num_visual,
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
