"""Handwritten digits that bounce: of `samples`, and a dataset of their own over black.

scikit-learn's 1797 digits of 8 × 8 pixels stand in the installed package; nothing is downloaded.
Two datasets are in the manner of Moving MNIST (Srivastava et al. 2015), with one digit:

    moving-train, moving-val    a white digit over black, 64 px, 32 frames, label = digit
"""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from toto.data.encode import encode_h264
from toto.data.packaged import packaged_file
from toto.data.parts import is_published
from toto.data.plan import make_key
from toto.data.progress import Progress, silent
from toto.data.shards import DatasetWriter

if TYPE_CHECKING:
    from pathlib import Path

    from toto.data.decode import Frames

__all__ = [
    "DIGITS",
    "DIGIT_FRAMES",
    "DIGIT_VIDEO_SIZE",
    "FPS",
    "bouncing_digit",
    "draw_size",
    "make_moving_digits",
    "read_digits",
    "rows_of_split",
]

DIGITS = "sklearn/datasets/data/digits.csv.gz"
# Pictures of the last quarter of each digit are for validation.
TRAIN_SHARE = 0.75
DIGIT_FRAMES = 32
DIGIT_VIDEO_SIZE = 64
FPS = 25
SEED = 0
SPLITS = ("train", "val")
VIDEOS = {"train": 3000, "val": 200}


def make_moving_digits(root: Path, *, progress: Progress = silent) -> None:
    """Make `moving-train` and `moving-val` under `root`: a white digit over black.

    What is there stays. A picture of the one is in no video of the other. The same versions of
    scikit-learn and of FFmpeg give the same bytes.

    Args:
        root: made if it is missing.
        progress: called after each video.

    Raises:
        UserError: scikit-learn is missing, or its digits.
    """
    missing = [split for split in SPLITS if not is_published(root / f"moving-{split}")]
    total, done = sum(VIDEOS[split] for split in missing), 0
    images_NHW, labels_N = read_digits()
    for split in missing:
        rows = sorted(row for rows in rows_of_split(labels_N, split) for row in rows)
        rng = np.random.Generator(np.random.Philox(key=[SEED, SPLITS.index(split)]))
        with DatasetWriter(
            root / f"moving-{split}",
            kind="videos",
            form="raw",
            classes=tuple("0123456789"),
            sources=tuple(f"{DIGITS} row {row}" for row in rows),
        ) as writer:
            for number in range(VIDEOS[split]):
                row = rows[rng.integers(len(rows))]
                writer.add(
                    make_key(number, f"digit{labels_N[row]}_row{row}"),
                    "mp4",
                    encode_h264(_over_black(images_NHW[row], rng), fps=FPS),
                    origin=f"{DIGITS} row {row}",
                    frames=DIGIT_FRAMES,
                    label=int(labels_N[row]),
                )
                done += 1
                progress(done, total)


def read_digits() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The 1797 handwritten digits: `[N, 8, 8]` from 0 to 1, and their labels.

    Raises:
        UserError: scikit-learn is missing, or its digits.
    """
    with gzip.open(packaged_file(DIGITS), "rt") as lines:
        table = np.loadtxt(lines, delimiter=",")
    return table[:, :64].reshape(-1, 8, 8) / 16, table[:, 64].astype(np.int64)


def rows_of_split(labels_N: npt.NDArray[np.int64], split: str) -> list[list[int]]:
    """For each digit its rows of `train` or `val`."""
    parts = []
    for digit in range(10):
        rows = np.flatnonzero(labels_N == digit).tolist()
        border = int(len(rows) * TRAIN_SHARE)
        parts.append({"train": rows[:border], "val": rows[border:]}[split])
    return parts


def bouncing_digit(
    digit_HW: npt.NDArray[np.float64],
    size: int,
    colour: npt.NDArray[np.float64],
    background_HWC: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> Frames:
    """A digit with a soft edge that crosses a still background: `[T, H, W, 3]` uint8.

    Args:
        digit_HW: from 0 to 1.
        size: its side on the picture, px.
        colour: RGB up to 255.
        background_HWC: RGB up to 255, square.
        rng: draws the path: 1 to 3 px a frame in any direction, position and phase at random.
    """
    mask = Image.fromarray((digit_HW * 255).astype(np.uint8))
    alpha = np.asarray(mask.resize((size, size), Image.Resampling.BICUBIC)) / 255.0
    room = len(background_HWC) - size
    speed, angle = rng.uniform(1, 3), rng.uniform(0, 2 * np.pi)
    velocity = speed * np.array([np.sin(angle), np.cos(angle)])
    start = rng.uniform(0, room, size=2)
    frames = np.repeat(background_HWC[None], DIGIT_FRAMES, axis=0)
    for time, frame in enumerate(frames):
        y, x = (round(_bounce(place, room)) for place in start + velocity * time)
        patch = frame[y : y + size, x : x + size]
        patch[:] = patch * (1 - alpha[..., None]) + colour * alpha[..., None]
    return frames.round().astype(np.uint8)


def draw_size(rng: np.random.Generator) -> int:
    """A digit's side on the picture, px."""
    return int(rng.integers(20, 27))


def _over_black(digit_HW: npt.NDArray[np.float64], rng: np.random.Generator) -> Frames:
    white, black = np.full(3, 255.0), np.zeros((DIGIT_VIDEO_SIZE, DIGIT_VIDEO_SIZE, 3))
    return bouncing_digit(digit_HW, draw_size(rng), white, black, rng)


def _bounce(place: float, room: float) -> float:
    """Fold a straight path into 0 to `room`, as walls would."""
    folded = place % (2 * room)
    return min(folded, 2 * room - folded)
