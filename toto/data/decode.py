"""Encoded bytes to uint8 RGB frames: Pillow for pictures, PyAV for videos.

Pictures and videos are taken as they are stored: no rotation by EXIF or by a display matrix. Frame
numbers count decoded frames in the order of presentation, whatever the frame rate.
"""

from __future__ import annotations

import io
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter
from PIL import Image, UnidentifiedImageError

from toto.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from toto.data.manifest import Kind

__all__ = [
    "IMAGE_EXTENSIONS",
    "VIDEO_EXTENSIONS",
    "Frame",
    "Frames",
    "UndecodableError",
    "check_image",
    "count_frames",
    "decode_clip",
    "decode_frames",
    "decode_image",
    "iterate_video",
]

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})
VIDEO_EXTENSIONS = frozenset({"mp4", "m4v", "mov", "mkv", "webm", "avi"})
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")

Frame = npt.NDArray[np.uint8]
"""`[H, W, 3]` RGB."""
Frames = npt.NDArray[np.uint8]
"""`[T, H, W, 3]` RGB."""
Payload = bytes | memoryview


class UndecodableError(DataError):
    """A file that is broken, or not of the format that its name says."""


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


def decode_clip(payload: Payload, start: int, count: int, stride: int) -> Frames:
    """Frames start, start+stride, … of a video, equal to those of a decode of all frames.

    Decoding begins at the last keyframe that is shown no later than `start`.

    Raises:
        UndecodableError: the video is broken or has no such frames.
    """
    wanted = range(start, start + (count - 1) * stride + 1, stride)
    frames = _seek_clip(payload, wanted)
    if len(frames) < count:
        frames = [frame for rank, frame in enumerate(iterate_video(payload)) if rank in wanted]
    if len(frames) < count:
        raise UndecodableError(
            f"{len(frames)} of the {count} frames from {start} on, every {stride}, can be decoded"
        )
    return _stack(frames)


def iterate_video(payload: Payload) -> Iterator[Frame]:
    """All frames of a video, in order: the plain way.

    Raises:
        UndecodableError: the video is broken.
    """
    to_rgb = _ToRgb()
    with _open_video(payload) as (container, stream):
        for frame in container.decode(stream):
            yield to_rgb(frame)


def decode_frames(kind: Kind, payload: Payload, start: int, count: int, stride: int) -> Frames:
    """Frames of a sample of either kind; a picture has frame 0 alone.

    Raises:
        UndecodableError: the sample is broken or has no such frames.
    """
    if kind == "images":
        return decode_image(payload)[None]
    return decode_clip(payload, start, count, stride)


def count_frames(kind: Kind, payload: Payload) -> int:
    """Check a file and count its frames: a picture is decoded, a video's first and last frame.

    A video's packets are counted, those left out that its edit list discards; where they carry no
    times, all frames are decoded.

    Raises:
        UndecodableError: the file is broken.
    """
    if kind == "images":
        check_image(payload)
        return 1
    with _open_video(payload) as (container, stream):
        timeline = _read_timeline(container, stream)
    count = sum(1 for _ in iterate_video(payload)) if timeline is None else len(timeline.pts)
    if count == 0:
        raise UndecodableError("a video without frames")
    for frame in {0, count - 1}:
        decode_clip(payload, frame, 1, 1)
    return count


@dataclass(frozen=True)
class _Timeline:
    """When each frame is shown, in order, and the keyframes as (time shown, time to seek)."""

    pts: list[int]
    keyframes: list[tuple[int, int]]


class _MemoryFile(io.RawIOBase):
    """A payload as a file, without a copy: a video may be as large as its shard."""

    def __init__(self, payload: Payload) -> None:
        self._view = memoryview(payload)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        chunk = self._view[self._position : self._position + len(buffer)]
        buffer[: len(chunk)] = chunk
        self._position += len(chunk)
        return len(chunk)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._view)}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def tell(self) -> int:
        return self._position


@contextmanager
def _open_video(payload: Payload) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A container and its first video stream; what FFmpeg raises becomes UndecodableError."""
    try:
        # Titles in other encodings than UTF-8 are common, and no reason to refuse a film.
        with av.open(_MemoryFile(payload), mode="r", metadata_errors="replace") as container:
            if not container.streams.video:
                raise UndecodableError("a file without a video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise UndecodableError("a video of a codec that FFmpeg does not know")
            # One thread each: the loader's workers are the parallel part.
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.FFmpegError as error:
        raise UndecodableError(f"no readable video ({error.strerror})") from error


def _read_timeline(container: InputContainer, stream: VideoStream) -> _Timeline | None:
    """The times of all frames, from the packets alone; None where packets carry no times."""
    pts: list[int] = []
    keyframes: list[tuple[int, int]] = []
    for packet in container.demux(stream):
        if packet.size == 0 or packet.is_discard or packet.is_corrupt:
            continue
        if packet.pts is None or packet.dts is None:
            return None
        pts.append(packet.pts)
        if packet.is_keyframe:
            keyframes.append((packet.pts, packet.dts))
    if len(set(pts)) != len(pts):
        return None
    return _Timeline(sorted(pts), keyframes)


def _seek_clip(payload: Payload, wanted: range) -> list[Frame]:
    """The frames of those numbers, decoded from the last keyframe shown before them.

    Empty or incomplete where the file's times do not lead to them.
    """
    with _open_video(payload) as (container, stream):
        timeline = _read_timeline(container, stream)
        if timeline is None or wanted.stop > len(timeline.pts):
            return []
        due = {timeline.pts[number] for number in wanted}
        first = min(due)
        # Seeking goes by decoding times: at its own one, no later keyframe can be taken for it.
        container.seek(
            max((seek for shown, seek in timeline.keyframes if shown <= first), default=0),
            stream=stream,
            backward=True,
        )
        to_rgb = _ToRgb()
        found: list[Frame] = []
        for frame in container.decode(stream):
            if frame.pts in due:
                due.remove(frame.pts)
                found.append(to_rgb(frame))
            if not due:
                break
    return found


class _ToRgb:
    """Converts the frames of one video. A converter for each frame costs six times as much."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> Frame:
        rgb = self._reformatter.reformat(frame, format="rgb24")
        return np.asarray(rgb.to_ndarray(), dtype=np.uint8)


def _stack(frames: list[Frame]) -> Frames:
    if len({frame.shape for frame in frames}) > 1:
        raise UndecodableError("the size of its frames changes")
    return np.stack(frames)
