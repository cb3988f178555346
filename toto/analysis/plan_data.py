"""What the sources of a recipe have to give, and what those that are here hold. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from toto.data.addresses import expand, is_remote, place
from toto.data.config import listed
from toto.data.index import Dataset
from toto.data.units import Units

if TYPE_CHECKING:
    from toto.data.config import SourceConfig
    from toto.recipe.schemas import TrainRecipe

__all__ = ["Held", "SourceNeed", "source_needs"]

CODE_BYTES = 2  # token shards hold uint16


@dataclass(frozen=True)
class Held:
    """What a source that lies on this machine gives.

    Attributes:
        epoch_sequences: of an epoch, as the stream counts them.
        token_bytes: of token shards of it, every decoded frame coded once; 0 where it is tokens
            already or the tokenizer gives patches.
    """

    epoch_sequences: int
    token_bytes: int


@dataclass(frozen=True)
class SourceNeed:
    """What one source has to give.

    Attributes:
        name: in the recipe.
        sequences: of the run.
        held: what it gives; None where it is elsewhere.
    """

    name: str
    sequences: int
    held: Held | None

    @property
    def epochs(self) -> float | None:
        """How often the run goes through it."""
        return None if self.held is None else self.sequences / self.held.epoch_sequences


def source_needs(recipe: TrainRecipe) -> list[SourceNeed]:
    """Each source's part of a run, in the recipe's order.

    Raises:
        DataError: a dataset that is here is damaged, or its videos are shorter than a clip.
    """
    total = sum(source.weight for source in recipe.data.sources.values())
    sequences = recipe.training.steps * recipe.batch_sequences
    return [
        SourceNeed(name, round(sequences * source.weight / total), _held(recipe, source))
        for name, source in recipe.data.sources.items()
    ]


def _held(recipe: TrainRecipe, source: SourceConfig) -> Held | None:
    root = recipe.data.root
    if any(is_remote(place(root, path)) for path in listed(source.path)):
        return None
    folders = [Path(folder) for folder in expand(source.path, root, stall_seconds=1.0)]
    if not all(folder.exists() for folder in folders):
        return None
    datasets = [Dataset.open(folder) for folder in folders]
    dataset = datasets[0] if len(datasets) == 1 else Dataset.join(datasets)
    clip = recipe.clip
    if dataset.kind == "images":
        units = Units(dataset, frames=1, stride=1)
        sequences = int(units.per_shard.sum()) // clip.frames
    else:
        units = Units(dataset, frames=clip.frames, stride=source.stride or clip.stride)
        sequences = int(units.per_shard.sum())
    coded = dataset.form == "raw" and recipe.tokenizer.output == "codes"
    frames = _frames(dataset) if coded else 0
    return Held(max(sequences, 1), CODE_BYTES * frames * recipe.layout.tokens_per_frame)


def _frames(dataset: Dataset) -> int:
    """Decoded frames of all samples, shard by shard: memory holds no array of all."""
    starts = dataset.shard_starts.tolist()
    return sum(int(dataset.frame_counts(first, last).sum()) for first, last in pairwise(starts))
