"""`toto tokenize`: raw shards become token shards of one tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toto.data.tokens import tokenize_dataset
from toto.errors import Problem, RecipeError
from toto.jobs.console import progress_bar, say
from toto.jobs.sources import open_dataset
from toto.recipe.reader import read_recipe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["tokenize_shards"]


def tokenize_shards(dataset: str, out: Path, *, recipe_name: str, overrides: Sequence[str]) -> None:
    """Tokenize a dataset with the tokenizer and at the resolution of a recipe.

    Raises:
        RecipeError: the recipe's mistakes.
        DataError: the dataset, or a tokenizer without codes.
    """
    recipe = read_recipe(recipe_name, overrides)
    missing = recipe.tokenizer.missing_weights
    if missing:
        raise RecipeError(recipe_name, [Problem("tokenizer.weights", "missing", missing)])
    tokenizer = recipe.tokenizer.build().eval()
    resolution = recipe.clip.resolution
    with progress_bar(f"tokenizing {dataset}") as progress:
        report = tokenize_dataset(
            open_dataset(dataset),
            out,
            tokenizer=tokenizer,
            resolution=resolution,
            progress=progress,
        )
    height, width = recipe.tokenizer.grid(resolution)
    say(f"{out}: {report.num_frames:,} frames of {height} × {width} codes at {resolution} px")
    say(f"  tokenizer {recipe.tokenizer.registered_name} {tokenizer.fingerprint()[:12]}")
