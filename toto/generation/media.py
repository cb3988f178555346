"""Pictures for people: labelled sheets and animations of uint8 RGB frames, as PNG, GIF and MP4.

Frames are numpy arrays `THWC` (uint8 RGB). Small frames are enlarged with nearest neighbour, so
that every pixel stays visible.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from toto.files import disk_errors, replacing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = [
    "continuation_sheet",
    "pixel_scale",
    "sheet",
    "side_by_side",
    "tinted",
    "write_gif",
    "write_mp4",
    "write_png",
]

Pixels = NDArray[np.uint8]

BACKGROUND = (27, 31, 38)
TEXT = (236, 239, 244)
FRAME = (240, 165, 0)  # around what was given to the model
FONT_SIZE = 14
STRIP = 22  # height of a strip of labels, in pixels
GAP = 6
BORDER = 3


def pixel_scale(side: int, target: int = 128) -> int:
    """How many times frames of `side` pixels are enlarged to come near `target` pixels."""
    return max(1, round(target / side))


def sheet(
    rows: Mapping[str, Pixels],
    captions: Sequence[str],
    *,
    columns: int = 8,
    scale: int = 1,
    framed: int = 0,
) -> Pixels:
    """Rows of frames above each other, each with its label, wrapped after `columns` frames.

    Args:
        rows: label → frames `THWC`, all of one size; a shorter row ends in empty places.
        captions: one text above each column of frames.
        columns: frames beside each other before a new band of rows begins.
        scale: enlargement of the frames.
        framed: the first so many frames get a coloured frame.

    Returns:
        One picture `HWC`.
    """
    frames = [_enlarge(row_THWC, scale) for row_THWC in rows.values()]
    height, width = frames[0].shape[1:3]
    gutter = GAP + max(_text_width(label) for label in rows) + GAP
    columns = min(columns, len(captions))
    bands = -(-len(captions) // columns)
    band_height = STRIP + len(rows) * (height + GAP)
    canvas = Image.new(
        "RGB", (gutter + columns * (width + GAP), bands * band_height + GAP), BACKGROUND
    )
    draw = ImageDraw.Draw(canvas)
    for index, caption in enumerate(captions):
        band, column = divmod(index, columns)
        left, top = gutter + column * (width + GAP), band * band_height
        _write(draw, (left + width // 2, top + STRIP // 2), caption, anchor="mm")
        for row, row_THWC in enumerate(frames):
            corner = (left, top + STRIP + row * (height + GAP))
            if index < len(row_THWC):
                _paste(canvas, row_THWC[index], corner, framed=index < framed)
    for band in range(bands):
        for row, label in enumerate(rows):
            middle = band * band_height + STRIP + row * (height + GAP) + height // 2
            _write(draw, (GAP, middle), label, anchor="lm")
    return np.asarray(canvas)


def continuation_sheet(rows: Mapping[str, Pixels], *, prompt_frames: int, scale: int = 1) -> Pixels:
    """A `sheet` of whole sequences: frames numbered from 1, the prompt named and framed.

    Args:
        rows: label → frames `THWC`, such as the real video's above the generated ones.
        prompt_frames: the first so many were given to the model.
        scale: enlargement of the frames.
    """
    captions = [
        "prompt" if index < prompt_frames else str(index + 1) for index in range(_longest(rows))
    ]
    return sheet(rows, captions, scale=scale, framed=prompt_frames)


def side_by_side(columns: Mapping[str, Pixels], *, prompt_frames: int, scale: int = 1) -> Pixels:
    """An animation of sequences beside each other, the prompt framed and counted by itself.

    Args:
        columns: label → frames `THWC`, all of one size; where one ends first, its place is empty.
        prompt_frames: the first so many were given to the model.
        scale: enlargement of the frames.

    Returns:
        Frames `THWC`, as many as the longest has, of even height and width.
    """
    enlarged = {label: _enlarge(frames_THWC, scale) for label, frames_THWC in columns.items()}
    height, width = next(iter(enlarged.values())).shape[1:3]
    size = (_even(GAP + len(columns) * (width + GAP)), _even(STRIP + height + STRIP))
    total = _longest(columns)
    pictures = []
    for index in range(total):
        given = index < prompt_frames
        canvas = Image.new("RGB", size, BACKGROUND)
        draw = ImageDraw.Draw(canvas)
        for column, (label, frames_THWC) in enumerate(enlarged.items()):
            left = GAP + column * (width + GAP)
            _write(draw, (left + width // 2, STRIP // 2), label, anchor="mm")
            if index < len(frames_THWC):
                _paste(canvas, frames_THWC[index], (left, STRIP), framed=given)
        counter = (
            f"prompt {index + 1} of {prompt_frames}" if given else f"frame {index + 1} of {total}"
        )
        _write(draw, (size[0] // 2, size[1] - STRIP // 2), counter, anchor="mm")
        pictures.append(np.asarray(canvas))
    return np.stack(pictures)


def tinted(frames_THWC: Pixels, ids_THW: Pixels, palette: Pixels) -> Pixels:
    """Frames with each object's pixels half in its colour; id 0 leaves a pixel as it is.

    Args:
        frames_THWC: any number, of one size.
        ids_THW: the object of each pixel.
        palette: RGB of each id, `[ids, 3]`.
    """
    mixed_THWC = (frames_THWC // 2) + (palette // 2)[ids_THW]
    return np.where(ids_THW[..., None] > 0, mixed_THWC, frames_THWC)


def write_png(path: Path, image_HWC: Pixels) -> None:
    """Write one picture."""
    with disk_errors(path), replacing(path) as part:
        Image.fromarray(image_HWC).save(part, format="PNG", optimize=True)


def write_gif(path: Path, frames_THWC: Pixels, *, frame_seconds: float = 0.25) -> None:
    """Write an animation that repeats for ever, in 256 colours that all its frames share.

    A palette of its own for each frame would let still parts of the picture flicker.
    """
    palette = Image.fromarray(np.concatenate(frames_THWC)).quantize(256)
    pictures = [
        Image.fromarray(frame_HWC).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame_HWC in frames_THWC
    ]
    with disk_errors(path), replacing(path) as part:
        pictures[0].save(
            part,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=round(1000 * frame_seconds),
            loop=0,
        )


def write_mp4(path: Path, frames_THWC: Pixels, *, frame_seconds: float = 0.25) -> None:
    """Write an H.264 video (4:2:0, which every browser plays).

    Raises:
        ValueError: the height or the width is odd, which 4:2:0 cannot hold.
    """
    import av

    height, width = frames_THWC.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"frames of {width} × {height} px: both must be even for H.264 4:2:0")
    rate = Fraction(1 / frame_seconds).limit_denominator(1000)
    with (
        disk_errors(path),
        replacing(path) as part,
        av.open(str(part), "w", format="mp4") as container,
    ):
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame_HWC in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())


def _longest(sequences: Mapping[str, Pixels]) -> int:
    return max(len(frames_THWC) for frames_THWC in sequences.values())


def _enlarge(frames_THWC: Pixels, scale: int) -> Pixels:
    return frames_THWC.repeat(scale, axis=1).repeat(scale, axis=2)


def _even(size: int) -> int:
    return size + size % 2


def _text_width(text: str) -> int:
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    return round(ruler.textlength(text, font=ImageFont.load_default(FONT_SIZE)))


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, *, anchor: str) -> None:
    draw.text(at, text, fill=TEXT, font=ImageFont.load_default(FONT_SIZE), anchor=anchor)


def _paste(canvas: Image.Image, frame_HWC: Pixels, at: tuple[int, int], *, framed: bool) -> None:
    canvas.paste(Image.fromarray(frame_HWC), at)
    if framed:
        # Drawn around the frame, in the gap, so that it hides nothing.
        box = (
            at[0] - BORDER,
            at[1] - BORDER,
            at[0] + frame_HWC.shape[1] + BORDER - 1,
            at[1] + frame_HWC.shape[0] + BORDER - 1,
        )
        ImageDraw.Draw(canvas).rectangle(box, outline=FRAME, width=BORDER)
