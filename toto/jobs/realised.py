"""What a run really drew of each source, and the files that it could not decode."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toto.files import disk_errors
from toto.training.metrics import cut_back, read_lines
from toto.wording import number_of

if TYPE_CHECKING:
    from pathlib import Path

    from toto.data.loader import BrokenUnit
    from toto.data.stream import Stream

__all__ = ["FailureLog", "SourceDraws", "describe_draws", "realised_mixture"]

FAILURES_FILES = "failures*.jsonl"


@dataclass(frozen=True)
class SourceDraws:
    """One source of a run.

    Attributes:
        name: in the recipe.
        sequences: that it gave.
        share: of all sequences.
        epochs: how often its units were gone through.
        failures: units that could not be decoded and were replaced by others of the source.
    """

    name: str
    sequences: int
    share: float
    epochs: float
    failures: int


def realised_mixture(stream: Stream, sequences: int, failures: Counter[str]) -> list[SourceDraws]:
    """What each source gave to the first `sequences` sequences of a stream.

    Args:
        stream: of the run.
        sequences: drawn so far.
        failures: by source, as `FailureLog.read` counts them.
    """
    counts = stream.mixture.counts(sequences)
    return [
        SourceDraws(name, count, count / sequences, source.epochs(count), failures[name])
        for name, source, count in zip(stream.names, stream.sources, counts, strict=True)
    ]


class FailureLog:
    """RUN/failures.jsonl: a line for each unit that was replaced.

    Ranks after the first have files of their own, failures-00001.jsonl and so on: many shared file
    systems lose lines that several machines append to one file.

    Args:
        run: the run directory.
        names: of the sources.
        rank: whose units are logged.

    Raises:
        RunError: (every method) the disk is full or refuses.
    """

    def __init__(self, run: Path, names: tuple[str, ...], rank: int) -> None:
        self._path = run / (f"failures-{rank:05d}.jsonl" if rank else "failures.jsonl")
        self._names = names

    @staticmethod
    def cut_back(run: Path, step: int) -> None:
        """Drop what an earlier process wrote of steps after `step`, on any rank."""
        for path in run.glob(FAILURES_FILES):
            cut_back(path, step)

    def add(self, broken: BrokenUnit) -> None:
        """Write one down; `step` counts from 1, as in metrics.jsonl."""
        line = {
            "kind": "failure",
            "step": broken.step + 1,
            "source": self._names[broken.source],
            "what": broken.what,
        }
        with disk_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    @staticmethod
    def read(run: Path) -> Counter[str]:
        """Failures by source; none where the run has no such file."""
        paths = run.glob(FAILURES_FILES)
        return Counter(line["source"] for path in paths for line in read_lines(path))


def describe_draws(draws: list[SourceDraws], tokens_per_sequence: int) -> list[str]:
    """A line for each source; tokens are visual ones."""
    return [
        f"{draw.name}: {number_of(draw.sequences * tokens_per_sequence, 'token')} in "
        f"{number_of(draw.sequences, 'sequence')} "
        f"({draw.share:.1%}), {draw.epochs:.2f} epochs, {draw.failures:,} undecodable"
        for draw in draws
    ]
