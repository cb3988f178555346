"""Read back what a next-token run wrote: its metrics, its probes and its generated videos."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter

from toto.analysis.evaluations import read_probings, results_of_kind
from toto.analysis.records import (
    Number,
    TrainPoint,
    json_object,
    parse,
    read_metrics,
)
from toto.errors import DataError
from toto.evaluation.results import best_by_layer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from toto.analysis.evaluations import Probing
    from toto.evaluation.results import ProbeRow, ProbeScore

__all__ = [
    "Evaluation",
    "Generated",
    "GeneratedSample",
    "RunRecord",
    "SourceLoss",
    "peaks",
    "read_run",
]


@dataclass(frozen=True)
class SourceLoss:
    """Validation loss of one source, in the unit of the loss, and the baselines beside it.

    `frame_*` hold one value for each frame of the sequence. Patch inputs have no baselines, and a
    model that tells classes has no frames either. `accuracy` is of such a model, or of the best
    probe that is trained beside another.
    """

    loss: Number
    frame_loss: list[Number] | None = None
    accuracy: float | None = None
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
    """One generated sequence: what it began with, and its files.

    Attributes:
        gif: relative to the folder of generated.json.
        sheet: likewise.
        prompt: the video or the files that its first frames are of, or the start alone.
        prompt_frames: how many frames were given; 0 for the start alone.
        seed: of its draws.
    """

    gif: str
    sheet: str
    prompt: str
    prompt_frames: int
    seed: int


@dataclass(frozen=True)
class Generated:
    """What `toto generate` wrote.

    Attributes:
        step: of the checkpoint.
        prompts: `held-out` videos of a source of the run, `files` of the user, or the `start` id.
        source: which one, of held-out videos.
        start: the id that each sequence began with, of a video or of separate images.
        frames: generated for each sequence.
    """

    step: int
    prompts: Literal["held-out", "files", "start"]
    source: str | None
    start: Literal["video", "image"]
    frames: int
    sampling: dict[str, float]
    samples: list[GeneratedSample]


@dataclass(frozen=True)
class RunRecord:
    """Everything of a run that a report shows; what was not run yet is empty or None.

    Attributes:
        folder: the run's.
        train: its logged steps.
        evals: its evaluations.
        probings: the results of all probes and classifiers, the newest first.
        generated: what was generated last.
        generated_folder: where the files of `generated.samples` are.
        generated_earlier: the folders of other generated sequences, the newest first.
    """

    folder: Path
    train: list[TrainPoint]
    evals: list[Evaluation]
    probings: list[Probing]
    generated: Generated | None
    generated_folder: Path
    generated_earlier: list[Path]

    @property
    def last_step(self) -> int:
        """The last step that was logged or evaluated; 0 before there is one."""
        lines: list[TrainPoint | Evaluation] = [*self.train, *self.evals]
        return max((line.step for line in lines), default=0)


TRAIN_POINT = TypeAdapter(TrainPoint)
EVALUATION = TypeAdapter(Evaluation)
GENERATED_FILE = TypeAdapter(Generated)


def read_run(folder: Path) -> RunRecord:
    """Read the records of a training run.

    Raises:
        UserError: there is no such run; the message lists the runs beside it.
        DataError: a record that is not as toto writes it, with file and line.
    """
    train, evals = read_metrics(folder, TRAIN_POINT, EVALUATION)
    records = results_of_kind(folder, "generate")
    evals = [_without_a_copy_of_nothing(one) for one in evals]
    return RunRecord(
        folder,
        train,
        evals,
        read_probings(folder),
        _read_generated(records[0]) if records else None,
        records[0].parent if records else folder,
        [path.parent for path in records[1:]],
    )


def _without_a_copy_of_nothing(one: Evaluation) -> Evaluation:
    """Drop the copying baseline of single frames, which older runs recorded: it is the unigram."""
    sources = {
        name: replace(loss, copy=None, frame_copy=None)
        if loss.frame_loss is not None and len(loss.frame_loss) == 1
        else loss
        for name, loss in one.sources.items()
    }
    return replace(one, sources=sources)


def peaks(rows: Sequence[ProbeRow]) -> list[ProbeScore]:
    """The best score of each pooling, the best pooling first."""
    best = [max(layers, key=_accuracy) for layers in best_by_layer(rows).values()]
    return sorted(best, key=_accuracy, reverse=True)


def _accuracy(score: ProbeScore) -> float:
    return score.accuracy


def _read_generated(path: Path) -> Generated:
    value = json_object(path.read_bytes(), str(path))
    mend = f"Run `toto generate` again, or remove {path.parent}"
    generated = parse(GENERATED_FILE, value, str(path), mend)
    for sample in generated.samples:
        for name in (sample.gif, sample.sheet):
            if not (path.parent / name).is_file():
                raise DataError(f"{path} names {name}, which is missing. Run `toto generate` again")
    return generated
