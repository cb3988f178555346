"""The folder that `toto track` writes: whole or as it was, and resumed after a kill.

A hidden working folder grows by one sequence at a time: the masks of every layer, and a file of
scores once all of them are there. The same command finds the sequences that are done; other
settings start from the first sequence. In the end it becomes the folder, with the masks of the best
layer alone.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from toto.analysis.figures import draw_tracking
from toto.evaluation.tracking_metrics import ObjectScore  # noqa: TC001  # pydantic reads it
from toto.files import resumed_folder, write_atomic
from toto.folders import publish, working_place

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from toto.evaluation.tracking_results import TrackingResults

__all__ = ["OVERLAYS", "SUMMARY", "SequenceScores", "TrackFolder"]

RESULTS, SUMMARY, CURVE, MASKS, OVERLAYS = (
    "results.jsonl", "summary.json", "curve.png", "masks", "overlays",
)  # fmt: skip
SETTINGS, DONE = "settings.json", "done"


@dataclass(frozen=True)
class SequenceScores:
    """What one sequence scored: each layer's objects, and those of the copied first mask."""

    layers: dict[int, list[ObjectScore]]
    copies: list[ObjectScore]


class TrackFolder:
    """The folder while it is written.

    Args:
        folder: as it will be.
        settings: what the masks are made with; JSON.

    Attributes:
        unfinished: where it grows.

    Raises:
        OSError: the disk is full, or the parent refuses.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.settings = settings
        self.unfinished = working_place(folder)
        text = json.dumps(settings, indent=2) + "\n"
        mark = self.unfinished / SETTINGS
        was_there = resumed_folder(self.unfinished)
        if was_there and mark.is_file() and mark.read_text(encoding="utf-8") == text:
            return
        shutil.rmtree(self.unfinished)
        (self.unfinished / DONE).mkdir(parents=True)
        write_atomic(mark, text)

    def masks(self, layer: int) -> Path:
        """Where the masks of a layer go, in a folder for each sequence."""
        return self.unfinished / f"{MASKS}-{layer}"

    def scores(self, sequence: str) -> SequenceScores | None:
        """Of a sequence that is done, masks and all; None of any other."""
        path = self.unfinished / DONE / f"{sequence}.json"
        return _SCORES.validate_json(path.read_bytes()) if path.is_file() else None

    def finish(self, sequence: str, scores: SequenceScores) -> None:
        """Note that all masks of a sequence are there, and what they scored.

        Raises:
            OSError: the disk is full or refuses.
        """
        path = self.unfinished / DONE / f"{sequence}.json"
        write_atomic(path, json.dumps(asdict(scores), allow_nan=False) + "\n")

    def complete(self, results: TrackingResults) -> None:
        """Write results and figure, drop what the work alone needed, and publish the folder.

        Overlays must be there by now.

        Raises:
            OSError: the disk is full or refuses.
        """
        results.write(self.unfinished / RESULTS, self.unfinished / SUMMARY, self.settings)
        draw_tracking(self.unfinished / CURVE, results)
        # From here on the same command would start from the first sequence.
        (self.unfinished / SETTINGS).unlink()
        self.masks(results.best).rename(self.unfinished / MASKS)
        for layer in results.layers:
            shutil.rmtree(self.masks(layer), ignore_errors=True)
        shutil.rmtree(self.unfinished / DONE)
        publish(self.unfinished, self.folder)


_SCORES = TypeAdapter(SequenceScores)
