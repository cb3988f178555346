"""Which sources of a mixture have labels, and whether a task can learn from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toto.data.class_names import differing_classes
from toto.data.index import NO_LABEL
from toto.errors import DataError
from toto.tasks.config import ClassifyConfig, Labels, ModelTaskConfig
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toto.data.index import Dataset
    from toto.jobs.sources import Source
    from toto.recipe.schemas import TrainRecipe

__all__ = ["labelled_samples", "labelled_together", "labels_of"]


def labels_of(recipe: TrainRecipe, sources: Sequence[Source]) -> Labels | None:
    """The labels that the recipe's task learns from; None where it learns from none.

    Raises:
        DataError: a source without labels, other classes than another's, videos beside pictures,
            what cannot be classified, or tokens that are to be mixed.
    """
    task = recipe.task
    assert isinstance(task, ModelTaskConfig)
    names = task.labelled(tuple(recipe.data.sources))
    if not names:
        return None
    chosen = [source for source in sources if source.name in names]
    first = chosen[0].train
    for source in chosen:
        for dataset in filter(None, (source.train, source.validation)):
            _require_labels(dataset, source.name, task)
            reason = _apart(dataset, first)
            if reason:
                packed = f"Pack it again with --classes {first.path}, or l"
                advice = packed if dataset.classes != first.classes else "L"
                raise DataError(
                    f"data.sources.{source.name}: {dataset.path} {reason} {first.path}, and "
                    f"task {task.registered_name} learns one set of classes. {advice}eave one of "
                    "them out"
                )
    if isinstance(task, ClassifyConfig):
        _require_one_class_a_sequence(recipe, chosen)
        if task.mixup:
            _require_pixels(chosen)
    numbers = tuple(number for number, source in enumerate(sources) if source.name in names)
    return Labels(numbers, len(first.classes), first.kind == "images")


def labelled_together(sources: Sequence[Source]) -> tuple[list[Source], list[str]]:
    """The sources with the classes of the first that has labels, and why others with labels go by.

    Their held-out data, where they have some, must have the same classes.
    """
    chosen: list[Source] = []
    notes: list[str] = []
    for source in sources:
        if not source.train.classes:
            continue
        first = chosen[0].train if chosen else source.train
        parts = filter(None, (source.train, source.validation))
        reasons = [reason for part in parts if (reason := _apart(part, first))]
        if reasons:
            notes.append(f"labels of {source.name} are not used: it {reasons[0]} {first.path}")
        else:
            chosen.append(source)
    return chosen, notes


def labelled_samples(dataset: Dataset) -> int:
    """Samples with a label that are not excluded."""
    return int((dataset.labels(0, dataset.num_samples)[dataset.kept()] != NO_LABEL).sum())


def _apart(dataset: Dataset, first: Dataset) -> str | None:
    """Why two datasets cannot share classifiers."""
    if dataset.classes != first.classes:
        return f"{differing_classes(dataset.classes, first.classes)}, unlike"
    return None if dataset.kind == first.kind else f"holds {dataset.kind}, unlike"


def _require_labels(dataset: Dataset, name: str, task: ModelTaskConfig) -> None:
    if not dataset.classes:
        raise DataError(
            f"data.sources.{name}: {dataset.path} has no labels, and task {task.registered_name} "
            "learns from labels. Pack a folder with one sub-folder a class, or leave the source out"
        )


def _require_pixels(sources: Sequence[Source]) -> None:
    for source in sources:
        if source.train.form == "tokens":
            raise DataError(
                f"data.sources.{source.name}: {source.train.path} holds tokens, and task.mixup "
                "mixes pixels. Name the packed pictures or videos, or write mixup: 0"
            )


def _require_one_class_a_sequence(recipe: TrainRecipe, sources: Sequence[Source]) -> None:
    """Else pictures of other classes would read each other, or a sample would have no target."""
    for source in sources:
        if source.train.kind == "images" and recipe.clip.frames > 1:
            raise DataError(
                f"data.sources.{source.name}: {source.train.path} holds pictures, each of a class "
                f"of its own, and clip.frames puts {recipe.clip.frames} into a sequence. Write "
                "clip.frames: 1"
            )
        for dataset in filter(None, (source.train, source.validation)):
            lacking = len(dataset.kept()) - labelled_samples(dataset)
            if lacking:
                raise DataError(
                    f"data.sources.{source.name}: {number_of(lacking, 'sample')} of {dataset.path} "
                    "without a label, and task classify learns nothing else. Pack the dataset "
                    "without them"
                )
