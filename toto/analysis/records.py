"""The lines and objects of JSON that a run wrote, read strictly: each error names file and line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BeforeValidator, TypeAdapter, ValidationError
from pydantic_core import from_json

from toto.errors import DataError, UserError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["METRICS", "Number", "TrainPoint", "json_lines", "json_object", "parse", "read_metrics"]

METRICS = "metrics.jsonl"

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""JSON has no NaN: null stands for it."""


@dataclass(frozen=True)
class TrainPoint:
    """What every report reads of a logged step: see `toto.training.metrics.TrainLine`.

    `tokens`: visual tokens seen until then. What runs did not record at first has a default.
    """

    step: int
    tokens: int
    loss: Number
    lr: Number
    grad_norm: Number
    tokens_per_s: Number
    data_wait: Number
    source_loss: dict[str, Number] = field(default_factory=dict)
    utilisation: float | None = None
    memory: int | None = None


T = TypeVar("T")
E = TypeVar("E")


def read_metrics(
    folder: Path, train: TypeAdapter[T], evaluation: TypeAdapter[E]
) -> tuple[list[T], list[E]]:
    """The logged steps and the evaluations of a run, in the order of RUN/metrics.jsonl.

    Raises:
        UserError: there is no such run; the message lists the runs beside it.
        DataError: a line that is not as toto writes it, with file and line.
    """
    path = folder / METRICS
    if not path.is_file():
        raise UserError(_missing_run(folder))
    steps, evaluations = [], []
    for where, value in json_lines(path):
        kind = value.get("kind")
        if kind == "train":
            steps.append(parse(train, value, where))
        elif kind == "eval":
            evaluations.append(parse(evaluation, value, where))
        else:
            raise DataError(f"{where}: kind is {kind!r}, not 'train' or 'eval'")
    return steps, evaluations


def json_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a .jsonl file, each with "file:line"; none if there is no file.

    A last line without its line break is still being written, and is left out.

    Raises:
        DataError: a line that is no JSON object.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    places = [f"{path}:{number}" for number in range(1, len(lines) + 1)]
    return [(where, json_object(line, where)) for where, line in zip(places, lines, strict=True)]


def json_object(data: bytes, where: str) -> dict[str, Any]:
    """One JSON object.

    Raises:
        DataError: it is none; `where` opens the message.
    """
    try:
        value = from_json(data)
    except ValueError as error:
        raise DataError(f"{where}: no JSON ({error}). Restore the file or run again") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: no JSON object. Restore the file or run again")
    return value


def parse(
    kind: TypeAdapter[T],
    value: dict[str, Any],
    where: str,
    mend: str = "Restore the file or run again",
) -> T:
    """An object as what it should be.

    Args:
        kind: what it should be.
        value: the object.
        where: it stands; opens the message.
        mend: closes the message.

    Raises:
        DataError: it is not that; `where` and the first wrong field open the message.
    """
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{where}: {field}: {first['msg']}. {mend}") from error


def _missing_run(folder: Path) -> str:
    what = f"no run at {folder}" if not folder.is_dir() else f"{folder} holds no {METRICS}"
    others = sorted(str(path.parent) for path in folder.parent.glob(f"*/{METRICS}"))
    if others:
        return f"{what}. Runs that exist: {', '.join(others)}"
    return f"{what}, and no run stands beside it. `toto train RECIPE` makes one"
