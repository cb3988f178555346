"""Read back what a run wrote: its metrics, its probes and its generated videos."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BeforeValidator, TypeAdapter, ValidationError
from pydantic_core import from_json

from toto.errors import DataError, UserError
from toto.evaluation.results import ProbeRow

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Evaluation",
    "Generated",
    "GeneratedSample",
    "Probed",
    "RunRecord",
    "SourceLoss",
    "TrainPoint",
    "best_by_layer",
    "peaks",
    "read_run",
]

METRICS = "metrics.jsonl"
PROBES = Path("probe") / "results.jsonl"
PROBED = Path("probe") / "summary.json"
GENERATED = Path("generated") / "generated.json"


Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""JSON has no NaN: null stands for it."""


@dataclass(frozen=True)
class TrainPoint:
    """What the report reads of a logged step. `tokens`: visual tokens seen until then."""

    step: int
    tokens: int
    loss: Number
    lr: Number
    grad_norm: Number
    tokens_per_s: Number


@dataclass(frozen=True)
class SourceLoss:
    """Validation loss of one source, in the unit of the loss, and the baselines beside it.

    `frame_*` hold one value for each frame of the sequence. Patch inputs have no baselines.
    """

    loss: Number
    frame_loss: list[Number]
    unigram: float | None = None
    copy: float | None = None
    frame_unigram: list[Number] | None = None
    frame_copy: list[Number] | None = None


@dataclass(frozen=True)
class Evaluation:
    """One evaluation on the held-out split of each source."""

    step: int
    tokens: int
    sources: dict[str, SourceLoss]


@dataclass(frozen=True)
class GeneratedSample:
    """The files of one continued video, relative to the folder of generated.json."""

    gif: str
    sheet: str


@dataclass(frozen=True)
class Generated:
    """What `toto generate` wrote: `frames` new frames after `prompt_frames` real ones.

    `step` is that of the checkpoint.
    """

    step: int
    prompt_frames: int
    frames: int
    samples: list[GeneratedSample]
    sampling: dict[str, float]
    source: str
    seed: int


@dataclass(frozen=True)
class Probed:
    """The checkpoint and the source of the probes."""

    step: int
    source: str


@dataclass(frozen=True)
class RunRecord:
    """Everything of a run that a report shows; what was not run yet is empty or None.

    `probed` says which checkpoint the probes are of.
    """

    folder: Path
    train: list[TrainPoint]
    evals: list[Evaluation]
    probes: list[ProbeRow]
    probed: Probed | None
    generated: Generated | None

    @property
    def last_step(self) -> int:
        """The last step that was logged or evaluated; 0 before there is one."""
        lines: list[TrainPoint | Evaluation] = [*self.train, *self.evals]
        return max((line.step for line in lines), default=0)

    @property
    def generated_folder(self) -> Path:
        """Where the files of `generated.samples` stand."""
        return (self.folder / GENERATED).parent


T = TypeVar("T")

TRAIN_POINT = TypeAdapter(TrainPoint)
EVALUATION = TypeAdapter(Evaluation)
PROBE_ROW = TypeAdapter(ProbeRow)
PROBED_FILE = TypeAdapter(Probed)
GENERATED_FILE = TypeAdapter(Generated)


def read_run(folder: Path) -> RunRecord:
    """Read the records of a training run.

    Raises:
        UserError: there is no such run; the message lists the runs beside it.
        DataError: a record that is not as toto writes it, with file and line.
    """
    if not (folder / METRICS).is_file():
        raise UserError(_missing_run(folder))
    train, evals = _read_metrics(folder / METRICS)
    probes = [_parse(PROBE_ROW, value, where) for where, value in _json_lines(folder / PROBES)]
    return RunRecord(
        folder,
        train,
        evals,
        probes,
        _read_probed(folder / PROBED),
        _read_generated(folder / GENERATED),
    )


def best_by_layer(rows: Sequence[ProbeRow]) -> dict[str, list[ProbeRow]]:
    """For each pooling the best row of every layer over the learning rates, in order of layers.

    Of equal accuracies the first row counts, as in `ProbeResults.best`.
    """
    best: dict[str, dict[int, ProbeRow]] = {}
    for row in rows:
        layers = best.setdefault(row.head, {})
        if row.layer not in layers or row.accuracy > layers[row.layer].accuracy:
            layers[row.layer] = row
    return {head: [layers[layer] for layer in sorted(layers)] for head, layers in best.items()}


def peaks(rows: Sequence[ProbeRow]) -> list[ProbeRow]:
    """The best row of each pooling, the best pooling first."""
    best = [max(layers, key=_accuracy) for layers in best_by_layer(rows).values()]
    return sorted(best, key=_accuracy, reverse=True)


def _accuracy(row: ProbeRow) -> float:
    return row.accuracy


def _missing_run(folder: Path) -> str:
    what = f"no run at {folder}" if not folder.is_dir() else f"{folder} holds no {METRICS}"
    others = sorted(str(path.parent) for path in folder.parent.glob(f"*/{METRICS}"))
    if others:
        return f"{what}. Runs that exist: {', '.join(others)}"
    return f"{what}, and no run stands beside it. `toto train RECIPE` makes one"


def _read_metrics(path: Path) -> tuple[list[TrainPoint], list[Evaluation]]:
    train, evals = [], []
    for where, value in _json_lines(path):
        kind = value.get("kind")
        if kind == "train":
            train.append(_parse(TRAIN_POINT, value, where))
        elif kind == "eval":
            evals.append(_parse(EVALUATION, value, where))
        else:
            raise DataError(f"{where}: kind is {kind!r}, not 'train' or 'eval'")
    return train, evals


def _read_probed(path: Path) -> Probed | None:
    if not path.is_file():
        return None
    return _parse(PROBED_FILE, _json_object(path.read_bytes(), str(path)), str(path))


def _read_generated(path: Path) -> Generated | None:
    if not path.is_file():
        return None
    generated = _parse(GENERATED_FILE, _json_object(path.read_bytes(), str(path)), str(path))
    for sample in generated.samples:
        for name in (sample.gif, sample.sheet):
            if not (path.parent / name).is_file():
                raise DataError(f"{path} names {name}, which is missing. Run `toto generate` again")
    return generated


def _json_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a .jsonl file, each with "file:line"; none if there is no file.

    A last line without its line break is still being written, and is left out.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    places = [f"{path}:{number}" for number in range(1, len(lines) + 1)]
    return [(where, _json_object(line, where)) for where, line in zip(places, lines, strict=True)]


def _json_object(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = from_json(data)
    except ValueError as error:
        raise DataError(f"{where}: no JSON ({error}). Restore the file or run again") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: no JSON object. Restore the file or run again")
    return value


def _parse(kind: TypeAdapter[T], value: dict[str, Any], where: str) -> T:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{where}: {field}: {first['msg']}. Restore the file or run again"
        ) from error
