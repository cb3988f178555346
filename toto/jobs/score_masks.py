"""`toto track --score`: masks in the layout of DAVIS, scored as the official code scores them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toto.data.davis import DavisSequence, Ids, open_davis, read_mask
from toto.errors import DataError
from toto.evaluation.tracking import score_masks
from toto.evaluation.tracking_metrics import ObjectScore, TrackingScores
from toto.evaluation.tracking_results import figures
from toto.jobs.console import progress_bar, say, say_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["score_folder"]


def score_folder(masks: Path, davis: Path, names: Sequence[str]) -> None:
    """Score MASKS/SEQUENCE/00000.png and print every figure with all its digits.

    Args:
        masks: the folder of what was found; the first and last mask of a sequence are not read.
        davis: the folder of DAVIS.
        names: of sequences; none for all that DAVIS lists.

    Raises:
        DataError: masks or annotations that are missing, broken or do not fit each other.
    """
    if not masks.is_dir():
        raise DataError(f"no folder {masks}. Give the one that holds a folder of masks a sequence")
    sequences = open_davis(davis, names)
    objects: list[ObjectScore] = []
    with progress_bar("scoring", "sequences") as progress:
        for done, sequence in enumerate(sequences, start=1):
            objects += score_masks(sequence, _reader(masks, sequence))
            progress(done, len(sequences))
    scores = TrackingScores(tuple(objects))
    say_table(
        ("sequence", "object", "J mean", "F mean"),
        [[one.sequence, str(one.object), repr(one.j.mean), repr(one.f.mean)] for one in objects],
    )
    say("")
    say_table(
        ("all objects", "value"), [[name, repr(value)] for name, value in figures(scores).items()]
    )


def _reader(masks: Path, sequence: DavisSequence) -> Callable[[int], tuple[Ids, str]]:
    """Return a function that reads the mask of a frame, which has the name of the frame."""

    def read(index: int) -> tuple[Ids, str]:
        path = masks / sequence.name / sequence.mask_name(index)
        return read_mask(path), str(path)

    return read
