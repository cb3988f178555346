"""`toto report RUN RUN ...`: several runs on one page."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from toto.analysis.comparison import ComparedRun, Comparison, read_losses, write_comparison
from toto.errors import UserError
from toto.jobs.console import say
from toto.jobs.history import last_start
from toto.jobs.report import COMMANDS
from toto.jobs.setup import RECIPE_FILE, leaves
from toto.jobs.trained import import_all
from toto.recipe.derived import derived_numbers
from toto.recipe.reader import check_recorded
from toto.recipe.schemas import TrainRecipe
from toto.recipe.yaml_reader import read_yaml
from toto.tasks.config import ClassifyConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toto.recipe.schemas import Recipe

__all__ = ["compare_runs"]

PAGE = "comparison.html"
# They tell runs apart and decide nothing.
NAMES = ("name", "title", "output")


def compare_runs(runs: Sequence[str], *, out: Path | None, imports: Sequence[str]) -> None:
    """Write a page that compares runs, which may still be trained.

    Args:
        runs: at least two run directories.
        out: the page; comparison.html in the folder that they share unless given.
        imports: plug-ins to import first.

    Raises:
        UserError: no such run, or one that is named twice.
        DataError: a record of a run that cannot be read.
    """
    import_all(imports)
    folders = [Path(run) for run in runs]
    twice = [str(folder) for folder, count in Counter(folders).items() if count > 1]
    if twice:
        raise UserError(f"{', '.join(twice)}: named twice. Name each run once")
    labels = _labels(folders)
    compared = [
        _compared(number, folder, label)
        for number, (folder, label) in enumerate(zip(folders, labels, strict=True))
    ]
    shared = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
    page = out or Path(os.path.relpath(shared / PAGE))
    write_comparison(page, Comparison(compared, shlex.join(["toto", "report", *runs])))
    say(f"{page}: {page.stat().st_size / 1e6:.1f} MB")


def _compared(number: int, folder: Path, label: str) -> ComparedRun:
    train, evals = read_losses(folder)
    recipe = check_recorded(read_yaml(folder / RECIPE_FILE), f"the recipe in {folder}")
    start = last_start(folder)
    settings = leaves(recipe.model_dump(mode="json"))
    return ComparedRun(
        number=number,
        label=label,
        unit=_unit(recipe),
        target=_target(recipe),
        parameters=derived_numbers(recipe).get("params_total"),
        steps=recipe.training.steps,
        command=start.command if start else f"{COMMANDS[recipe.verb]} {folder / RECIPE_FILE}",
        settings={key: value for key, value in settings.items() if key not in NAMES},
        train=train,
        evals=evals,
    )


def _labels(folders: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths where two have the same."""
    names = [folder.name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _unit(recipe: Recipe) -> str:
    return recipe.loss_unit if isinstance(recipe, TrainRecipe) else "task's loss"


def _target(recipe: Recipe) -> str:
    """What the loss is a loss of."""
    if not isinstance(recipe, TrainRecipe):
        return f"{recipe.task!r} of {recipe.tokenizer!r} at {recipe.clip.resolution} px"
    if isinstance(recipe.task, ClassifyConfig):
        return f"classes of {', '.join(str(one.path) for one in recipe.data.sources.values())}"
    return f"{recipe.target!r} at {recipe.target_resolution} px"
