"""A film of a tracked sequence for the eye: the annotation beside the masks that were found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from toto.data.davis import PALETTE, DavisSequence, Ids, read_mask
from toto.files import disk_errors
from toto.generation.media import side_by_side, tinted, write_mp4

if TYPE_CHECKING:
    from pathlib import Path

    from toto.generation.media import Pixels

__all__ = ["write_overlay"]

HEIGHT = 240  # about, of a film; DAVIS has 480
FRAME_SECONDS = 1 / 24


def write_overlay(path: Path, sequence: DavisSequence, masks: Path, label: str) -> None:
    """Write an MP4 of the frames under the colours of their objects.

    Args:
        path: of the file; its folder is made if it is missing.
        sequence: frames and annotations.
        masks: the folder of the masks that were found, named as the frames.
        label: of what found them.
    """
    shrink = max(1, round(sequence.truth(0).shape[0] / HEIGHT))
    numbers = range(len(sequence))
    frames = np.stack([_small(sequence.picture(index), shrink) for index in numbers])
    truth = [sequence.truth(index) for index in numbers]
    found = [read_mask(masks / sequence.mask_name(index)) for index in numbers]
    columns = {
        title: tinted(frames, _small_ids(ids, shrink), PALETTE)
        for title, ids in (("annotation", truth), (label, found))
    }
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, side_by_side(columns, prompt_frames=1), frame_seconds=FRAME_SECONDS)


def _small(picture_HWC: Pixels, shrink: int) -> Pixels:
    return np.asarray(Image.fromarray(picture_HWC).reduce(shrink))


def _small_ids(ids: list[Ids], shrink: int) -> Ids:
    small: Ids = np.stack(ids)[:, ::shrink, ::shrink]
    return small
