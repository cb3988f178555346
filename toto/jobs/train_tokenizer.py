"""`toto tokenizer train`: on pictures and frames, with PSNR and codebook use beside the loss."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from toto.analysis.records import json_object
from toto.analysis.tokenizer_runs import BASELINES, CODE_COUNTS
from toto.data.clips import FrameList, read_clip
from toto.data.config import TOGETHER, ClipConfig
from toto.evaluation.tokenizer_baselines import CELL_MEAN, baselines_of, images_to_fit
from toto.jobs.console import say
from toto.jobs.held_out import evaluated, validation_batches
from toto.jobs.history import Asked, Origin
from toto.jobs.setup import begun_run, read_recipe_for
from toto.jobs.sources import open_sources, root_explained
from toto.jobs.train import running_engine, train_task
from toto.recipe.schemas import TokenizerRecipe
from toto.tasks.config import TokenizerTaskConfig
from toto.tokenizers.quality import codebook_stats, collapse_bound, psnr
from toto.tokenizers.weights import save_weights
from toto.training.distributed import Ranks
from toto.training.metrics import Values, metric_values
from toto.training.task import Mean, sum_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from toto.data.batch import Batch
    from toto.jobs.sources import Source
    from toto.tokenizers.base import Tokenizer
    from toto.training.engine import Engine
    from toto.training.rundir import RunDirectory

__all__ = ["run_tokenizer_training", "start_tokenizer_training"]

WEIGHTS_FILE = "tokenizer.safetensors"
EVALUATION_FILE = "evaluation.json"


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
        if run.finished:
            return _evaluation_in(run)
        return _run(settled, ranks, run, Origin(asked))


def _run(
    recipe: TokenizerRecipe, ranks: Ranks, run: RunDirectory, origin: Origin
) -> dict[str, Values]:
    with root_explained(recipe.data.root, run.path):
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

    final: dict[str, Values] = {}

    def finish() -> None:
        measured = measure() if held_out else {}
        final.update({name: _quality(metrics) for name, metrics in measured.items()})
        if ranks.is_first:
            _write_results(tokenizer, measured, final, run)
            if held_out:
                _write_baselines(recipe, sources, final, run)

    train_task(
        recipe,
        engine,
        sources,
        ranks=ranks,
        run=run,
        fingerprints={},
        evaluate=evaluate if held_out else None,
        finish=finish,
        origin=origin,
    )
    return final


def _evaluation_in(run: RunDirectory) -> dict[str, Values]:
    """Return what the last evaluation of a finished run found; nothing without validation data."""
    path = run.path / EVALUATION_FILE
    return json_object(path.read_bytes(), str(path)) if path.is_file() else {}


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
    run.write_text(EVALUATION_FILE, json.dumps(final, indent=2) + "\n")
    counts = {name: metrics["codes"].total.long().tolist() for name, metrics in measured.items()}
    run.write_text(CODE_COUNTS, json.dumps(counts) + "\n")
    for name, values in final.items():
        say(
            f"{name}: PSNR {values['psnr']:.2f} dB, {values['codebook_use']:.1%} of the codes "
            f"used, perplexity {values['perplexity']:.0f}"
        )


def _write_baselines(
    recipe: TokenizerRecipe, sources: Sequence[Source], final: dict[str, Values], run: RunDirectory
) -> None:
    """Write RUN/baselines.json and say what the tokenizer must beat.

    PSNR of each source and of all, on the validation images, fitted on training images.
    """
    side = recipe.clip.resolution
    grid = recipe.tokenizer.grid(side)
    count = -(-images_to_fit(grid) // len(sources))
    clip = ClipConfig(frames=1, stride=1, resolution=side)
    fitting = (
        _pixels(torch.from_numpy(read_clip(source.train, sample, frame, clip).copy()))
        for source in sources
        for sample, frame in FrameList(source.train).spread(count)
    )
    found: dict[str, dict[str, float]] = {}
    for name, baseline in baselines_of(grid, recipe.tokenizer.codebook_size, fitting).items():
        psnrs = {
            source.name: torch.cat(
                [
                    psnr(baseline.decode(baseline.encode(pixels_BCHW)), pixels_BCHW)
                    for pixels_BCHW in _validation_pixels(recipe, source)
                ]
            )
            for source in sources
            if source.validation is not None
        }
        psnrs[TOGETHER] = torch.cat(list(psnrs.values()))
        found[name] = {source: values.mean().item() for source, values in psnrs.items()}
    run.write_text(BASELINES, json.dumps(found, indent=2) + "\n")
    for name, values in found.items():
        say(f"{TOGETHER}: {name} at the same grid: PSNR {values[TOGETHER]:.2f} dB")
    ours = final[TOGETHER]["psnr"]
    assert isinstance(ours, float)
    if ours < found[CELL_MEAN][TOGETHER]:
        say(
            f"warning: the tokenizer keeps less ({ours:.2f} dB) than the mean colour of each cell "
            f"of its grid ({found[CELL_MEAN][TOGETHER]:.2f} dB)"
        )


def _validation_pixels(recipe: TokenizerRecipe, source: Source) -> Iterator[Tensor]:
    for batch in validation_batches(recipe, source, Ranks()):
        if not batch.padding:
            frames_BTCHW = batch.frames()
            yield frames_BTCHW.flatten(0, 1).float() / 255


def _pixels(frames_THWC: Tensor) -> Tensor:
    return frames_THWC.permute(0, 3, 1, 2).float() / 255


def _warn_of_collapse(recipe: TokenizerRecipe, perplexity: float | list[float]) -> None:
    assert isinstance(recipe.task, TokenizerTaskConfig)
    assert isinstance(perplexity, float)
    num_codes = recipe.tokenizer.codebook_size
    bound = collapse_bound(num_codes)
    if perplexity < bound:
        say(
            f"warning: the codes have collapsed: perplexity {perplexity:.1f} of {num_codes:,} "
            f"codes on validation images, below {bound:.1f}. {recipe.task.against_collapse}"
        )


def _quality(metrics: dict[str, Mean]) -> Values:
    """The task's metrics, codebook_use and perplexity."""
    used, perplexity = codebook_stats(metrics["codes"].total)
    values = metric_values({name: metrics[name] for name in metrics if name != "codes"})
    return values | {"codebook_use": used, "perplexity": perplexity}
