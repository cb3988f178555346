"""Clips of single files, outside any dataset: a picture, or the first frames of a video."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toto.data.decode import (
    IMAGE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    Frames,
    UndecodableError,
    decode_clip,
    decode_image,
    inspect_media,
)
from toto.data.order import CENTRE
from toto.data.transforms import square, square_cut
from toto.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from toto.data.config import ClipConfig
    from toto.data.manifest import Kind

__all__ = ["kind_of_file", "read_picture_file", "read_video_file"]


def kind_of_file(path: Path) -> Kind:
    """Whether a file is a picture or a video, by the ending of its name.

    Raises:
        DataError: there is no such file, or the ending is of neither.
    """
    if not path.is_file():
        raise DataError(f"no file at {path}. Give the path of a picture or of a video")
    extension = path.suffix[1:].lower()
    if extension in IMAGE_EXTENSIONS:
        return "images"
    if extension in VIDEO_EXTENSIONS:
        return "videos"
    raise DataError(
        f"{path}: by its ending neither a picture ({', '.join(sorted(IMAGE_EXTENSIONS))}) nor a "
        f"video ({', '.join(sorted(VIDEO_EXTENSIONS))}). Convert it, or mend the ending"
    )


def read_picture_file(path: Path, resolution: int) -> Frames:
    """A picture's centre square, uint8 `[1, resolution, resolution, 3]`.

    Raises:
        DataError: the file cannot be read or decoded.
    """
    try:
        frames = decode_image(_read(path))[None]
    except UndecodableError as error:
        raise _undecodable(path, error) from error
    return square(frames, resolution, crop_y=CENTRE, crop_x=CENTRE)


def read_video_file(path: Path, clip: ClipConfig) -> Frames:
    """The centre square of a video's first frames, from frame 0 on, at the clip's stride.

    Returns:
        uint8 `[T, resolution, resolution, 3]`; T is `clip.frames`, or what a shorter video has.

    Raises:
        DataError: the file cannot be read or decoded.
    """
    payload = _read(path)
    try:
        total = inspect_media("videos", payload).frames
        available = (total - 1) // clip.stride + 1
        count = min(clip.frames, available)
        cut = square_cut(clip.resolution, crop_y=CENTRE, crop_x=CENTRE)
        return decode_clip(payload, 0, count, clip.stride, total=total, cut=cut)
    except UndecodableError as error:
        raise _undecodable(path, error) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. Mend its permissions, or copy it") from error


def _undecodable(path: Path, error: UndecodableError) -> DataError:
    return DataError(f"{path}: {error}. Copy or convert the file again, or give another one")
