"""Encoded bytes to uint8 RGB frames: Pillow for images, PyAV for videos.

Images and videos are turned upright by their EXIF orientation or display matrix, unless they are
asked for as stored. Frame numbers count decoded frames in the order of presentation, whatever the
frame rate.
"""

from __future__ import annotations

import io
import warnings
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Protocol, cast

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from toto.data.video import decode_clip, inspect_video, iterate_video
from toto.data.video_file import (
    Cut,
    Frame,
    Frames,
    MediaInfo,
    MemoryFile,
    Payload,
    Turn,
    UndecodableError,
    decode_seconds,
)
from toto.data.video_torchcodec import decode_clip_by_torchcodec, require_torchcodec
from toto.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from toto.data.config import Decoder
    from toto.data.index import Dataset
    from toto.data.manifest import Kind, Orientation

__all__ = [
    "IMAGE_EXTENSIONS",
    "MAX_IMAGE_PIXELS",
    "MAX_WHOLE_PIXELS",
    "VIDEO_EXTENSIONS",
    "ClipDecoder",
    "Cut",
    "Frame",
    "Frames",
    "MediaInfo",
    "UndecodableError",
    "check_image",
    "clip_decoder",
    "decode_clip",
    "decode_image",
    "decode_sample",
    "inspect_media",
    "iterate_video",
    "open_image",
    "upright_size",
]

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})
VIDEO_EXTENSIONS = frozenset({"mp4", "m4v", "mov", "mkv", "webm", "avi"})
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
MAX_IMAGE_PIXELS = 2**28
"""Pixels of an image: 0.8 GB as RGB."""
MAX_WHOLE_PIXELS = 2**26
"""Pixels of an image that is decoded at its full size: 0.2 GB as RGB."""
MAX_METADATA_BYTES = 2**26
"""Of one text or colour profile of a PNG, unpacked; Pillow's 1 MB is less than sound files hold."""

# Pillow has these limits as variables of its modules alone.
Image.MAX_IMAGE_PIXELS = MAX_IMAGE_PIXELS
# Above it Pillow only warns, and `open_image` refuses.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
PngImagePlugin.MAX_TEXT_CHUNK = MAX_METADATA_BYTES
PngImagePlugin.MAX_TEXT_MEMORY = 2 * MAX_METADATA_BYTES

# Orientation tag of EXIF → what it asks for (EXIF 2.32, table 6).
EXIF_TURNS = {
    2: Turn(False, False, True),
    3: Turn(False, True, True),
    4: Turn(False, True, False),
    5: Turn(True, False, False),
    6: Turn(True, False, True),
    7: Turn(True, True, True),
    8: Turn(True, True, False),
}


def decode_image(payload: Payload, orientation: Orientation = "upright") -> Frame:
    """Decode an image to uint8 `[H, W, 3]`; alpha is dropped, 16 bits become 8.

    An image above MAX_WHOLE_PIXELS is reduced by 2 or 4 in each direction, to below that: a JPEG
    while it is decoded, which keeps memory small, others by averaging.

    Raises:
        UndecodableError: it is not a JPEG, PNG or WebP, is damaged, or exceeds a limit.
    """
    with open_image(payload) as image:
        turn = _read_exif_turn(image) if orientation == "upright" else None
        factor = _reduction(*image.size)
        reduced_size = image.width // factor, image.height // factor
        if factor > 1:
            image.draft(image.mode, reduced_size)  # of JPEG alone
        if image.mode.startswith("I"):  # Pillow would clip 16-bit grey at 255
            rgb = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        else:
            rgb = image if image.mode == "RGB" else image.convert("RGB")
        if rgb.width * rgb.height > MAX_WHOLE_PIXELS:
            rgb = rgb.reduce(factor)
        pixels = np.array(rgb)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _reduction(width: int, height: int) -> int:
    """Return the power of 2 by which an image is reduced to MAX_WHOLE_PIXELS or less."""
    factor = 1
    while width * height > MAX_WHOLE_PIXELS * factor**2:
        factor *= 2
    return factor


def check_image(payload: Payload) -> MediaInfo:
    """Raise what `decode_image` would raise; a JPEG is decoded at an eighth of its size.

    All of a JPEG's entropy-coded data is read for that too, and the inverse transform, which has
    nothing to find, is spared.

    Raises:
        UndecodableError: it is not a JPEG, PNG or WebP, is damaged, or exceeds a limit; also the
            time limit `decode_seconds`.
    """
    with open_image(payload, seconds=decode_seconds(len(payload))) as image:
        image.draft(image.mode, (1, 1))
        image.load()
        return MediaInfo(frames=1, turned=_read_exif_turn(image) is not None)


def upright_size(payload: Payload) -> tuple[int, int]:
    """Return width and height of an image as `decode_image` gives it, without decoding a JPEG.

    Raises:
        UndecodableError: it is not a JPEG, PNG or WebP, its header is damaged, or exceeds a limit.
    """
    with open_image(payload) as image:
        width, height = image.size
        turn = _read_exif_turn(image)
        return (height, width) if turn is not None and turn.transpose else (width, height)


def _read_exif_turn(image: Image.Image) -> Turn | None:
    """Return the turn of an image's EXIF orientation; None without one, or where EXIF is damaged.

    Pillow raises whatever it runs into over damaged EXIF, and the image itself is sound.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return None
    return EXIF_TURNS.get(orientation) if isinstance(orientation, int) else None


@contextmanager
def open_image(
    payload: Payload, formats: tuple[str, ...] = IMAGE_FORMATS, seconds: float | None = None
) -> Iterator[Image.Image]:
    """Open an image; whatever Pillow raises, here or in the body, becomes UndecodableError.

    Args:
        payload: the encoded image.
        formats: Pillow's names of those allowed.
        seconds: processor time that decoding may take, checked where Pillow reads a piece of the
            file; no limit if None.

    Raises:
        UndecodableError: it is of no such format, is damaged, or exceeds a limit.
    """
    try:
        # A MemoryFile is slower to read, and is needed for the limit alone.
        file = io.BytesIO(payload) if seconds is None else MemoryFile(payload, seconds)
        with Image.open(cast("IO[bytes]", file), formats=formats) as image:
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                raise _too_large(f"{width} × {height} pixels are")
            yield image
    except DataError:
        raise
    except UnidentifiedImageError as error:
        names = "no JPEG, PNG or WebP" if formats == IMAGE_FORMATS else f"no {' or '.join(formats)}"
        raise UndecodableError(names) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large("its pixels are") from error
    except Exception as error:
        if "MAX_TEXT_CHUNK" in str(error) or "MAX_TEXT_MEMORY" in str(error):
            raise UndecodableError(
                f"its text or colour profile is above toto's limit of "
                f"{MAX_METADATA_BYTES:,} bytes. Remove the metadata"
            ) from error
        raise UndecodableError(f"a damaged image ({error or type(error).__name__})") from error


def _too_large(what: str) -> UndecodableError:
    return UndecodableError(
        f"{what} above toto's limit of {MAX_IMAGE_PIXELS:,} for images. Scale it down"
    )


class ClipDecoder(Protocol):
    """Decodes frames start, start+stride, … of a video; see `decode_clip`."""

    def __call__(
        self,
        payload: Payload,
        start: int,
        count: int,
        stride: int,
        *,
        total: int,
        orientation: Orientation,
        cut: Cut | None,
    ) -> Frames:
        """Return uint8 `[count, H, W, 3]`."""


def clip_decoder(name: Decoder) -> ClipDecoder:
    """Return the decoder of that name.

    Raises:
        UserError: it is not installed.
    """
    if name == "torchcodec":
        require_torchcodec()
        return decode_clip_by_torchcodec
    return decode_clip


def decode_sample(
    dataset: Dataset,
    sample: int,
    start: int,
    count: int,
    stride: int,
    *,
    cut: Cut | None = None,
    decode: ClipDecoder = decode_clip,
) -> Frames:
    """Decode frames of a sample of raw shards, turned as the dataset says; an image has one.

    Args:
        dataset: raw shards.
        sample: its number.
        start: number of the first frame.
        count: T, frames of the clip.
        stride: distance between frames of the clip.
        cut: what is kept of the frames; all of them if None.
        decode: the decoder of videos.

    Returns:
        uint8 `[T, H, W, 3]`; H and W are those of `cut`.

    Raises:
        DataError: the shard is missing or changed.
        UndecodableError: the sample is damaged or has no such frames.
    """
    payload, orientation = dataset.read(sample), dataset.orientation(sample)
    if dataset.kind == "images":
        frame_1HWC = decode_image(payload, orientation)[None]
        return frame_1HWC if cut is None else cut(frame_1HWC)
    total = dataset.frames(sample)
    return decode(payload, start, count, stride, total=total, orientation=orientation, cut=cut)


def inspect_media(kind: Kind, payload: Payload) -> MediaInfo:
    """Decode a whole file, an image or every frame of a video.

    Raises:
        UndecodableError: it is damaged, of another format, or exceeds a limit.
    """
    return inspect_video(payload) if kind == "videos" else check_image(payload)
