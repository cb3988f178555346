"""What a run records: metrics.jsonl, which the report reads, and TensorBoard beside it."""

from __future__ import annotations

import errno
import json
import math
import os
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self

from toto.errors import DataError
from toto.files import disk_errors, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from toto.training.distributed import Ranks
    from toto.training.task import Mean

__all__ = [
    "EvalLine",
    "MetricsWriter",
    "Recorder",
    "TrainLine",
    "cut_back",
    "metric_values",
    "open_recorder",
    "read_lines",
]

Values = dict[str, float | list[float]]
"""Metrics as plain numbers: scalars, or one number per frame."""

_NOT_DRAWN = ("step", "tokens", "metrics", "source_loss")


@dataclass(frozen=True)
class TrainLine:
    """One optimizer step.

    Attributes:
        step: optimizer steps done.
        tokens: visual tokens seen.
        loss: the reported loss of this step's batch; a pure function of the step.
        lr: learning rate.
        grad_norm: before clipping.
        tokens_per_s: visual tokens a second since the line before, evaluations and saves left out.
        data_wait: share of that time spent waiting for batches, 0 to 1.
        seconds: wall time of the run so far.
        metrics: the task's other scalars.
        source_loss: the loss of each source's part of this step's batch; NaN where it has none.
        utilisation: MFU: the share of the device's peak that the model's own forward and backward
            arithmetic took in that time (not recomputing, not tokenizing); None where unknown.
        memory: most bytes in use so far, of the rank with the most: tensors on a CUDA device, or
            the process in RAM.
        save_seconds: that training stood still for checkpoints since the line before.
    """

    step: int
    tokens: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_s: float
    data_wait: float
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    source_loss: dict[str, float] = field(default_factory=dict)
    utilisation: float | None = None
    memory: int | None = None
    save_seconds: float | None = None


@dataclass(frozen=True)
class EvalLine:
    """One evaluation: for each source its metrics on held-out data."""

    step: int
    tokens: int
    sources: Mapping[str, Values]


def metric_values(metrics: Mapping[str, Mean]) -> Values:
    """Means as plain numbers: a float for a scalar, a list for a vector."""
    return {name: mean.value().tolist() for name, mean in metrics.items()}


class Recorder(AbstractContextManager["Recorder"], Protocol):
    """Where the lines of a run go."""

    def train(self, line: TrainLine) -> None:
        """Record a step."""

    def evaluation(self, line: EvalLine) -> None:
        """Record an evaluation."""


def open_recorder(ranks: Ranks, path: Path, step: int) -> Recorder:
    """The writer of a run's metrics on its first rank; elsewhere nothing is kept.

    Args:
        ranks: this process and the others of the run.
        path: see `MetricsWriter`.
        step: likewise.

    Raises:
        RunError: the disk is full or refuses.
    """
    return MetricsWriter(path, step) if ranks.is_first else _NoRecorder()


class _NoRecorder(Recorder):
    """Of the ranks that write nothing."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return

    def train(self, line: TrainLine) -> None:
        """Nothing."""

    def evaluation(self, line: EvalLine) -> None:
        """Nothing."""


class MetricsWriter(Recorder):
    """Appends whole lines to `metrics.jsonl`, and the scalars to TensorBoard.

    Args:
        path: metrics.jsonl; TensorBoard's files go to `tensorboard/` beside it.
        step: steps done when the writing begins; TensorBoard hides what an earlier process wrote
            of later ones.

    Raises:
        RunError: (any method) the disk is full or refuses.
    """

    def __init__(self, path: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = path
        with disk_errors(path):
            # Unbuffered: a line is with the system once it is written, and closing cannot fail.
            self._file = path.open("ab", buffering=0)
            self._board = SummaryWriter(path.parent / "tensorboard", purge_step=step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        with disk_errors(self._path.parent):
            self._board.close()

    def train(self, line: TrainLine) -> None:
        """Record a step."""
        values = {name: value for name, value in asdict(line).items() if value not in (None, {})}
        self._write("train", values)
        scalars = {name: values[name] for name in values if name not in _NOT_DRAWN}
        scalars |= line.metrics
        scalars |= {f"loss/{source}": loss for source, loss in line.source_loss.items()}
        self._draw({f"train/{name}": value for name, value in scalars.items()}, line.step)

    def evaluation(self, line: EvalLine) -> None:
        """Record an evaluation."""
        self._write("eval", asdict(line))
        scalars = {
            f"{name}/{source}": value
            for source, values in line.sources.items()
            for name, value in values.items()
            if not isinstance(value, list)
        }
        self._draw(scalars, line.step)

    def _write(self, kind: str, values: dict[str, Any]) -> None:
        line = json.dumps({"kind": kind} | _plain(values), allow_nan=False) + "\n"
        with disk_errors(self._path):
            written = self._file.write(line.encode())
            if written != len(line):  # half of it fitted; json escapes all but ASCII
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _draw(self, scalars: Mapping[str, float], step: int) -> None:
        with disk_errors(self._path.parent):
            for name, value in scalars.items():
                if not math.isnan(value):
                    self._board.add_scalar(name, value, step)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that was torn by a kill is left out."""
    if not path.is_file():
        return
    # bytes.split, as str.splitlines also splits inside strings, at U+2028 and its like.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: no JSON ({error}). Restore the file") from error


def cut_back(path: Path, step: int) -> bool:
    """Drop the lines after `step`, and a torn last line, so that a resumed run doubles none.

    Returns:
        Whether an evaluation of that very step is among the lines kept.

    Raises:
        RunError: the disk is full or refuses.
    """
    kept = [line for line in read_lines(path) if line["step"] <= step]
    if path.is_file():
        with disk_errors(path):
            write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))
    return any(line["kind"] == "eval" and line["step"] == step for line in kept)


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity; null stands for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value
