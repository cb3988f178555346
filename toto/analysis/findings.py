"""What other commands left in a run's folder, for its page: their own words and their picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from toto.analysis.evaluations import results_of_kind
from toto.analysis.records import Number, json_object, parse
from toto.wording import number_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Finding", "read_findings"]

POSITIONS_CAPTION = (
    "The loss at each position of the sequence, frame after frame. The baselines are fitted on "
    "these very sequences, which favours them."
)
TRACKING_CAPTION = (
    "Masks propagated through videos by the features of each layer, and by copying the first mask: "
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
    """What is read of a summary.json of tracking."""

    step: int
    text: str
    preset: dict[str, Any] | None = None
    resolution: int | None = None

    @property
    def title(self) -> str:
        """With the settings that tell several trackings of a run apart."""
        name = f", preset {self.preset['name']}" if self.preset else ""
        side = f", {self.resolution} px" if self.resolution else ""
        return f"Tracking{name}{side}"


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
            f"{self.mean:.3f} {self.unit} in the mean of "
            f"{number_of(self.sequences, 'sequence')} of "
            f"{self.data}{ends if len(frames) > 1 else ''}."
        )


SUMMARY = TypeAdapter(_Summary)
POSITIONS = TypeAdapter(_Positions)


def read_findings(run: Path) -> list[Finding]:
    """Read the losses by position and the trackings of a run, the newest of each first.

    Probes are `RunRecord.probings`.

    Raises:
        DataError: a record that is not as toto writes it, with its file.
    """
    return [
        *(_positions(path.parent) for path in results_of_kind(run, "token_loss")),
        *(_tracking(path) for path in results_of_kind(run, "track")),
    ]


def _tracking(path: Path) -> Finding:
    summary = parse(SUMMARY, json_object(path.read_bytes(), str(path)), str(path))
    lines = summary.text.split("\n")
    picture = _if_there(path.with_name("curve.png"))
    return Finding(summary.title, TRACKING_CAPTION, lines, summary.step, picture)


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
