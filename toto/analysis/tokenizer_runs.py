"""Read back what a tokenizer's run wrote: its metrics, and how often each code was used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, TypeAdapter

from toto.analysis.records import Number, TrainPoint, json_object, parse, read_metrics
from toto.data.config import TOGETHER

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "BASELINES",
    "CODE_COUNTS",
    "TokenizerEvaluation",
    "TokenizerPoint",
    "TokenizerRecord",
    "read_tokenizer_run",
]

CODE_COUNTS = "code_counts.json"
BASELINES = "baselines.json"

T = TypeVar("T")

# What every evaluation measures; the rest of it is the task's own.
QUALITY = ("loss", "psnr", "codebook_use", "perplexity")


def _require_quality(values: dict[str, float]) -> dict[str, float]:
    missing = [name for name in QUALITY if name not in values]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")
    return values


Quality = Annotated[dict[str, Number], AfterValidator(_require_quality)]
"""Measured on held-out pictures: `psnr` (dB, mean over pictures), `codebook_use` (the share of the
codes that at least one token has), `perplexity` (exp of the entropy of the codes), `loss`, and
whatever else the task measures."""


@dataclass(frozen=True, kw_only=True)
class TokenizerPoint(TrainPoint):
    """A logged step: `metrics` are what the task logs beside its loss."""

    metrics: dict[str, Number]

    @property
    def values(self) -> dict[str, float]:
        """All that the task logged, its loss too."""
        return {"loss": self.loss} | self.metrics


@dataclass(frozen=True)
class TokenizerEvaluation:
    """One evaluation on the held-out split of each source, and of TOGETHER."""

    step: int
    tokens: int
    sources: dict[str, Quality]


@dataclass(frozen=True)
class TokenizerRecord:
    """What a tokenizer's run wrote; what is not there yet is empty.

    Attributes:
        folder: the run directory.
        train: the logged steps.
        evals: the evaluations.
        code_counts: for each source and TOGETHER how often each code was used, at the end.
        baselines: for each baseline the PSNR in dB by source and of TOGETHER, at the end.
    """

    folder: Path
    train: list[TokenizerPoint]
    evals: list[TokenizerEvaluation]
    code_counts: dict[str, list[int]]
    baselines: dict[str, dict[str, Number]]

    @property
    def last_step(self) -> int:
        """The last step that was logged or evaluated; 0 before there is one."""
        lines: list[TokenizerPoint | TokenizerEvaluation] = [*self.train, *self.evals]
        return max((line.step for line in lines), default=0)

    @property
    def terms(self) -> list[str]:
        """The names of what the task measures, while training or held out: loss, PSNR, others."""
        lines = [line.values for line in self.train]
        lines += [values for line in self.evals for values in line.sources.values()]
        found = dict.fromkeys(name for values in lines for name in ("loss", "psnr", *values))
        return [name for name in found if name not in ("codebook_use", "perplexity")]

    @property
    def series(self) -> list[str]:
        """The names that evaluations are shown under: TOGETHER only beside several sources."""
        names = list(self.evals[-1].sources) if self.evals else []
        return [name for name in names if name != TOGETHER] if len(names) == 2 else names


POINT = TypeAdapter(TokenizerPoint)
EVALUATION = TypeAdapter(TokenizerEvaluation)
COUNTS = TypeAdapter(dict[str, list[int]])
DECIBELS = TypeAdapter(dict[str, dict[str, Number]])


def read_tokenizer_run(folder: Path) -> TokenizerRecord:
    """Read the records of a tokenizer's run.

    Raises:
        UserError: there is no such run; the message lists the runs beside it.
        DataError: a record that is not as toto writes it, with file and line.
    """
    train, evals = read_metrics(folder, POINT, EVALUATION)
    counts = _read(folder / CODE_COUNTS, COUNTS)
    return TokenizerRecord(folder, train, evals, counts, _read(folder / BASELINES, DECIBELS))


def _read(path: Path, schema: TypeAdapter[T]) -> T | dict[str, Any]:
    """Return what the file holds; nothing where a run has not written it."""
    if not path.is_file():
        return {}
    return parse(schema, json_object(path.read_bytes(), str(path)), str(path))
