"""`toto tokenize`: raw shards become token shards of one tokenizer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from toto.data.parts import is_published
from toto.data.tokens import Rank, tokenize_dataset
from toto.errors import DataError
from toto.files import require_writable, sole_writer
from toto.jobs.console import progress_bar, say
from toto.jobs.named_tokenizer import require_weights
from toto.jobs.sources import open_dataset
from toto.recipe.reader import read_recipe
from toto.training.machine import resolve_machine
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from toto.training.config import TrainingConfig

__all__ = ["tokenize_shards"]


def tokenize_shards(
    dataset: str,
    out: Path,
    *,
    recipe_name: str,
    overrides: Sequence[str],
    crops: int,
) -> None:
    """Tokenize a dataset with the tokenizer and at the resolution of a recipe.

    Under torchrun every rank takes its share of the shards, on a GPU of its own where there are
    some, and the last one publishes the dataset.

    Args:
        dataset: raw shards.
        out: the token dataset's folder.
        recipe_name: the recipe.
        overrides: of the recipe.
        crops: of each picture; 1 is the centre alone.

    Raises:
        RecipeError: the recipe's mistakes.
        DataError: the dataset, or a tokenizer without codes.
    """
    rank = Rank(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    if rank.count > 1:  # they share the shards
        _tokenize(dataset, out, recipe_name, overrides, crops, rank)
        return
    if is_published(out):
        raise DataError(f"{out} exists already. Remove it, or choose another folder")
    require_writable(out, "Choose another folder")
    with sole_writer(out):
        _tokenize(dataset, out, recipe_name, overrides, crops, rank)


def _tokenize(
    dataset: str, out: Path, recipe_name: str, overrides: Sequence[str], crops: int, rank: Rank
) -> None:
    recipe = read_recipe(recipe_name, overrides)
    require_weights(recipe.tokenizer, recipe_name)
    tokenizer = recipe.tokenizer.build().eval().to(_device(recipe.training))
    resolution = recipe.clip.resolution
    label = f"tokenizing {dataset}" + (f", rank {rank.number}" if rank.count > 1 else "")
    with progress_bar(label, "tokens") as progress:
        report = tokenize_dataset(
            open_dataset(dataset, cache=recipe.data.cache),
            out,
            tokenizer=tokenizer,
            resolution=resolution,
            crops=crops,
            rank=rank,
            progress=progress,
            note=say,
        )
    if not report.whole:
        say(
            f"rank {rank.number} is through, others are not: the last one makes {out}. Where one "
            "was lost, the same command goes on from the shards that are finished"
        )
        return
    height, width = recipe.tokenizer.grid(resolution)
    say(
        f"{out}: {number_of(report.num_frames, 'frame')} of {height} × {width} codes at "
        f"{resolution} px"
    )
    say(f"  tokenizer {recipe.tokenizer.registered_name} {tokenizer.fingerprint()[:12]}")


def _device(training: TrainingConfig) -> str:
    """What the recipe asks for; each rank of a machine has a GPU of its own."""
    settled, _ = resolve_machine(training)
    if settled.device != "cuda":
        return settled.device
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
