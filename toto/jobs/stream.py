"""`toto stream`: which samples and crops given steps of a recipe use. Nothing is decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toto.data.ranks import share
from toto.errors import UserError
from toto.jobs.sources import named_stream
from toto.recipe.reader import read_recipe
from toto.terminal import is_stdout_lost, one_line
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["print_stream"]

HEAD = ("step", "rank", "position", "source", "sample", "key", "first_frame", "crop_y", "crop_x")


def print_stream(
    recipe_name: str, overrides: Sequence[str], *, first_step: int, steps: int, world: int
) -> None:
    """Print a line for each clip or picture of these steps, its fields parted by tabs.

    The order is of the datasets that the recipe names; token shards of `tokens: once` have the
    order of the raw shards that they were made of.

    Raises:
        RecipeError: the recipe's mistakes.
        UserError: more ranks than sequences.
        DataError: a dataset that is missing or does not fit.
    """
    recipe = read_recipe(recipe_name, overrides)
    if not 1 <= world <= recipe.batch_sequences:
        raise UserError(
            f"--world {world}: a step has {number_of(recipe.batch_sequences, 'sequence')} to share"
        )
    stream = named_stream(recipe)
    print("\t".join(HEAD))  # rich would expand the tabs
    for step in range(first_step, first_step + steps):
        if is_stdout_lost():  # `toto stream ... | head`
            return
        for rank in range(world):
            positions = share(step, recipe.batch_sequences, rank=rank, world=world)
            for unit in stream.units(positions):
                source = stream.sources[unit.source]
                fields = (
                    step,
                    rank,
                    unit.position,
                    stream.names[unit.source],
                    unit.sample,
                    source.dataset.key(unit.sample),
                    unit.start,
                    f"{unit.crop_y:.6f}",
                    f"{unit.crop_x:.6f}",
                )
                print("\t".join(one_line(str(field)) for field in fields))
