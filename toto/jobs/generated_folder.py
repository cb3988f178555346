"""The folder that `toto generate` writes: whole or absent, never in the place of other files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from toto.folders import new_folder
from toto.generation.media import (
    continuation_sheet,
    pixel_scale,
    side_by_side,
    write_gif,
    write_mp4,
    write_png,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from toto.analysis.runs import Generated
    from toto.generation.media import Pixels

__all__ = ["RECORD", "Shown", "sample_files", "write_generated"]

RECORD = "generated.json"


@dataclass(frozen=True)
class Shown:
    """What is shown of one sequence.

    Attributes:
        rows: label → frames `THWC`: the real ones, where something real follows the prompt, and
            the generated ones.
        prompt_frames: the first so many were given.
    """

    rows: dict[str, Pixels]
    prompt_frames: int


def sample_files(index: int) -> dict[str, str]:
    """The files of sequence `index`: their kind → their name."""
    return {kind: f"sample-{index}.{kind}" for kind in ("gif", "mp4", "png")}


def write_generated(folder: Path, sequences: Sequence[Shown], record: Generated) -> None:
    """Write all files, which then take the place of an earlier result.

    Raises:
        RunError: the disk is full, or refuses; the old folder is as it was.
    """
    with new_folder(folder) as unfinished:
        for index, sequence in enumerate(sequences):
            _write_sequence(unfinished, sample_files(index), sequence)
        text = json.dumps(asdict(record), indent=2)
        (unfinished / RECORD).write_text(text + "\n", encoding="utf-8")


def _write_sequence(folder: Path, names: dict[str, str], sequence: Shown) -> None:
    rows, given = sequence.rows, sequence.prompt_frames
    scale = pixel_scale(rows["generated"].shape[1])
    animation = side_by_side(rows, prompt_frames=given, scale=scale)
    write_gif(folder / names["gif"], animation)
    write_mp4(folder / names["mp4"], animation)
    write_png(folder / names["png"], continuation_sheet(rows, prompt_frames=given, scale=scale))
