"""`toto tokenizer train`: on pictures and frames, with PSNR and codebook use beside the loss."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from toto.analysis.tokenizer_runs import CODE_COUNTS
from toto.data.config import TOGETHER
from toto.jobs.console import say
from toto.jobs.held_out import evaluated, validation_batches
from toto.jobs.history import Asked, Origin
from toto.jobs.setup import begun_run, read_recipe_for
from toto.jobs.sources import open_sources
from toto.jobs.train import running_engine, train_task
from toto.recipe.schemas import TokenizerRecipe
from toto.tasks.config import TokenizerTaskConfig
from toto.tokenizers.quality import codebook_stats, collapse_bound
from toto.tokenizers.weights import save_weights
from toto.training.metrics import Values, metric_values
from toto.training.task import Mean, sum_metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toto.data.batch import Batch
    from toto.jobs.sources import Source
    from toto.tokenizers.base import Tokenizer
    from toto.training.distributed import Ranks
    from toto.training.engine import Engine
    from toto.training.rundir import RunDirectory

__all__ = ["run_tokenizer_training", "start_tokenizer_training"]

WEIGHTS_FILE = "tokenizer.safetensors"


def start_tokenizer_training(
    name: str, overrides: Sequence[str], *, output: str | None, resume: bool
) -> None:
    """Read a recipe and train its tokenizer.

    Raises:
        RecipeError: its mistakes, all of them.
        UserError: data or run directory do not fit.
    """
    recipe = read_recipe_for(TokenizerRecipe, name, overrides, output)
    run_tokenizer_training(recipe, resume=resume, asked=Asked(name, tuple(overrides)))


def run_tokenizer_training(
    recipe: TokenizerRecipe, *, resume: bool, asked: Asked | None = None
) -> dict[str, Values]:
    """Train a tokenizer, and write its weights and what its last evaluation found.

    RUN/tokenizer.safetensors are the weights. RUN/evaluation.json holds what is returned,
    RUN/code_counts.json for each source and `all` how often each code was used, by its id.

    Returns:
        The last evaluation: for each source the task's metrics, codebook_use and perplexity.
    """
    with begun_run(recipe, resume=resume) as (settled, ranks, run):
        return _run(settled, ranks, run, Origin(asked))


def _run(
    recipe: TokenizerRecipe, ranks: Ranks, run: RunDirectory, origin: Origin
) -> dict[str, Values]:
    sources = ranks.after_first(lambda: open_sources(recipe, None))
    torch.manual_seed(recipe.seed)
    tokenizer = recipe.tokenizer.build()
    assert isinstance(recipe.task, TokenizerTaskConfig)
    with running_engine(recipe, recipe.task.build(tokenizer), ranks) as engine:
        return _trained(recipe, tokenizer, engine, sources, ranks, run, origin)


def _trained(
    recipe: TokenizerRecipe,
    tokenizer: Tokenizer,
    engine: Engine[Batch],
    sources: Sequence[Source],
    ranks: Ranks,
    run: RunDirectory,
    origin: Origin,
) -> dict[str, Values]:
    held_out = {
        source.name: validation_batches(recipe, source, ranks)
        for source in sources
        if source.validation is not None
    }

    def measure() -> dict[str, dict[str, Mean]]:
        """Each source alone, and `all` over them together."""
        sums = {name: evaluated(engine, batches, ranks) for name, batches in held_out.items()}
        return sums | {TOGETHER: sum_metrics(sums.values())}

    def evaluate() -> dict[str, Values]:
        found = {name: _quality(metrics) for name, metrics in measure().items()}
        if ranks.is_first:
            _warn_of_collapse(recipe, found[TOGETHER]["perplexity"])
        return found

    result = train_task(
        recipe,
        engine,
        sources,
        ranks=ranks,
        run=run,
        fingerprints={},
        evaluate=evaluate if held_out else None,
        origin=origin,
    )
    if result.interrupted:
        return {}
    measured = measure() if held_out else {}
    final = {name: _quality(metrics) for name, metrics in measured.items()}
    if ranks.is_first:
        _write_results(tokenizer, measured, final, run)
    return final


def _write_results(
    tokenizer: Tokenizer,
    measured: dict[str, dict[str, Mean]],
    final: dict[str, Values],
    run: RunDirectory,
) -> None:
    save_weights(tokenizer, run.path / WEIGHTS_FILE)
    say(f"weights for recipes: {run.path / WEIGHTS_FILE}")
    if not measured:
        return
    run.write_text("evaluation.json", json.dumps(final, indent=2) + "\n")
    counts = {name: metrics["codes"].total.long().tolist() for name, metrics in measured.items()}
    run.write_text(CODE_COUNTS, json.dumps(counts) + "\n")
    for name, values in final.items():
        say(
            f"{name}: PSNR {values['psnr']:.2f} dB, {values['codebook_use']:.1%} of the codes "
            f"used, perplexity {values['perplexity']:.0f}"
        )


def _warn_of_collapse(recipe: TokenizerRecipe, perplexity: float | list[float]) -> None:
    assert isinstance(recipe.task, TokenizerTaskConfig)
    assert isinstance(perplexity, float)
    num_codes = recipe.tokenizer.codebook_size
    bound = collapse_bound(num_codes)
    if perplexity < bound:
        say(
            f"warning: the codes have collapsed: perplexity {perplexity:.1f} of {num_codes:,} codes "
            f"on validation images, below {bound:.1f}. {recipe.task.against_collapse}"
        )


def _quality(metrics: dict[str, Mean]) -> Values:
    """The task's metrics, codebook_use and perplexity."""
    used, perplexity = codebook_stats(metrics["codes"].total)
    values = metric_values({name: metrics[name] for name in metrics if name != "codes"})
    return values | {"codebook_use": used, "perplexity": perplexity}
