"""Encoded bytes to uint8 RGB frames: Pillow for pictures, PyAV for videos.

Pictures and videos are taken as they are stored: no rotation by EXIF or by a display matrix. Frame
numbers count decoded frames in the order of presentation, whatever the frame rate.
"""

from __future__ import annotations

import io
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from toto.data.video import (
    Frame,
    Frames,
    Payload,
    UndecodableError,
    count_video_frames,
    decode_clip,
    iterate_video,
)
from toto.data.video_torchcodec import decode_clip_by_torchcodec, require_torchcodec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from toto.data.config import Decoder
    from toto.data.manifest import Kind

__all__ = [
    "IMAGE_EXTENSIONS",
    "VIDEO_EXTENSIONS",
    "ClipDecoder",
    "Frame",
    "Frames",
    "UndecodableError",
    "check_image",
    "clip_decoder",
    "count_frames",
    "decode_clip",
    "decode_frames",
    "decode_image",
    "iterate_video",
]

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})
VIDEO_EXTENSIONS = frozenset({"mp4", "m4v", "mov", "mkv", "webm", "avi"})
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")


def decode_image(payload: Payload) -> Frame:
    """The picture in `payload`; alpha is dropped, 16 bits become 8.

    Raises:
        UndecodableError: it is no JPEG, PNG or WebP, or a broken one.
    """
    with _open_image(payload) as image:
        if image.mode.startswith("I"):  # Pillow would clip 16-bit grey at 255
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.array(image.convert("RGB"))


def check_image(payload: Payload) -> None:
    """Raise what `decode_image` would; a JPEG is decoded at an eighth of its size.

    All of a JPEG's entropy-coded data is read for that too, and the inverse transform, which has
    nothing to find, is spared.

    Raises:
        UndecodableError: it is no JPEG, PNG or WebP, or a broken one.
    """
    with _open_image(payload) as image:
        image.draft(image.mode, (1, 1))
        image.load()


@contextmanager
def _open_image(payload: Payload) -> Iterator[Image.Image]:
    """A picture; what Pillow raises becomes UndecodableError."""
    try:
        with Image.open(io.BytesIO(payload), formats=IMAGE_FORMATS) as image:
            yield image
    except UnidentifiedImageError as error:
        raise UndecodableError("no JPEG, PNG or WebP") from error
    # What Pillow's decoders raise over damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UndecodableError(f"a damaged picture ({error})") from error


class ClipDecoder(Protocol):
    """Decodes frames start, start+stride, … of a video, or raises UndecodableError."""

    def __call__(self, payload: Payload, start: int, count: int, stride: int) -> Frames:
        """uint8 `[count, H, W, 3]`."""


def clip_decoder(name: Decoder) -> ClipDecoder:
    """The decoder of that name.

    Raises:
        UserError: it is not installed.
    """
    if name == "torchcodec":
        require_torchcodec()
        return decode_clip_by_torchcodec
    return decode_clip


def decode_frames(
    kind: Kind,
    payload: Payload,
    start: int,
    count: int,
    stride: int,
    *,
    decode: ClipDecoder = decode_clip,
) -> Frames:
    """Frames of a sample of either kind; a picture has frame 0 alone.

    Raises:
        UndecodableError: the sample is broken or has no such frames.
    """
    if kind == "images":
        return decode_image(payload)[None]
    return decode(payload, start, count, stride)


def count_frames(kind: Kind, payload: Payload) -> int:
    """Check a file and count its frames: a picture is decoded, a video's first and last frame.

    Raises:
        UndecodableError: the file is broken.
    """
    if kind == "videos":
        return count_video_frames(payload)
    check_image(payload)
    return 1
