"""What other commands left in a run's folder, for its page: their own words and their picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from toto.analysis.records import Number, json_object, parse

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CLASSES", "Finding", "read_findings"]

PROBE_CAPTION = (
    "The best layer of each pooling on the validation samples, and accuracy over depth: the band "
    "is the 95% interval that the number of samples leaves, bars that of the mean over seeds."
)
CLASSES = "Classes through the whole model"
CLASSES_CAPTION = "One pooling head and a linear classifier, trained through the whole model."
POSITIONS_CAPTION = (
    "The loss at each position of the sequence, frame after frame. The baselines are fitted on "
    "these very sequences, which favours them."
)
TRACKING_CAPTION = (
    "Masks carried through videos by the features of each layer, beside copying the first mask: "
    "J is the overlap of regions, F that of borders."
)


@dataclass(frozen=True)
class Finding:
    """One section of the page.

    Attributes:
        title: of the section.
        caption: how to read it.
        lines: what came out.
        step: of the checkpoint.
        picture: a .png file, where there is one.
    """

    title: str
    caption: str
    lines: list[str]
    step: int
    picture: Path | None


@dataclass(frozen=True)
class _Summary:
    """What is read of a summary.json."""

    step: int
    text: str


@dataclass(frozen=True)
class _Positions:
    """What is read of token_loss.json; `by_frame` holds the model's losses and the baselines'."""

    step: int
    data: str
    sequences: int
    unit: str
    mean: float
    by_frame: dict[str, list[Number]]

    def text(self) -> str:
        frames = self.by_frame["model"]
        ends = f"; {frames[0]:.3f} in the first frame, {frames[-1]:.3f} in the last"
        return (
            f"{self.mean:.3f} {self.unit} in the mean of {self.sequences:,} sequences of "
            f"{self.data}{ends if len(frames) > 1 else ''}."
        )


SUMMARY = TypeAdapter(_Summary)
POSITIONS = TypeAdapter(_Positions)


def read_findings(run: Path) -> list[Finding]:
    """Probes by protocols, classes through the whole model, losses by position, tracking.

    Only what was run; the probes of RUN/probe itself are `RunRecord.probes`.

    Raises:
        DataError: a record that is not as toto writes it, with its file.
    """
    found = [
        _summed_up(path.parent, f"Accuracy by layer: {path.parent.name}", PROBE_CAPTION)
        for path in sorted((run / "probe").glob("*/summary.json"))
    ]
    if (run / "classify" / "summary.json").is_file():
        found.append(_summed_up(run / "classify", CLASSES, CLASSES_CAPTION))
    if (run / "token_loss" / "token_loss.json").is_file():
        found.append(_positions(run / "token_loss"))
    if (run / "track" / "summary.json").is_file():
        found.append(_summed_up(run / "track", "Tracking", TRACKING_CAPTION))
    return found


def _summed_up(folder: Path, title: str, caption: str) -> Finding:
    path = folder / "summary.json"
    summary = parse(SUMMARY, json_object(path.read_bytes(), str(path)), str(path))
    lines = summary.text.splitlines()
    return Finding(title, caption, lines, summary.step, _if_there(folder / "curve.png"))


def _positions(folder: Path) -> Finding:
    path = folder / "token_loss.json"
    measured = parse(POSITIONS, json_object(path.read_bytes(), str(path)), str(path))
    baselines = len(measured.by_frame) > 1
    return Finding(
        "Loss by position",
        POSITIONS_CAPTION if baselines else POSITIONS_CAPTION.partition(". ")[0] + ".",
        [measured.text()],
        measured.step,
        _if_there(folder / "token_loss.png"),
    )


def _if_there(picture: Path) -> Path | None:
    return picture if picture.is_file() else None
