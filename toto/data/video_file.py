"""Opening of video files from data, which may be damaged or hostile.

A file is data and never an instruction: only container formats that hold their own streams are
opened, and nothing that a file names is followed, whether another file or a network address.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, cast

import av
import numpy as np
import numpy.typing as npt
from av.container import Flags
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from toto.errors import DataError, UndecodableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from toto.data.manifest import Orientation

__all__ = [
    "MAX_FRAME_PIXELS",
    "ClipBuilder",
    "Cut",
    "Frame",
    "FrameConverter",
    "Frames",
    "MediaInfo",
    "MemoryFile",
    "Payload",
    "Turn",
    "UndecodableError",
    "decode_seconds",
    "open_video",
    "read_turn",
    "require_frame_size",
]

Frame = npt.NDArray[np.uint8]
"""`[H, W, 3]` RGB."""
Frames = npt.NDArray[np.uint8]
"""`[T, H, W, 3]` RGB."""
Payload = bytes | memoryview
Cut = Callable[[Frames], Frames]
"""Takes the part of frames that is wanted and resizes it, frame by frame alike."""

MAX_FRAME_PIXELS = 2**25
"""Pixels of a video frame: 8K (7680 × 4320) is just below."""

BASE_SECONDS = 120.0
SECONDS_PER_MEGABYTE = 10.0
"""Videos decode at more than 2 MB, or 1,000 small frames, a second; see `decode_seconds`."""

# FFmpeg's names of the demuxers for mp4, m4v, mov; mkv, webm; avi. They open no other file, and
# know all streams once they are open: PyAV reads past its memory where more appear later, as in
# MPEG-TS.
FORMATS = "mov,matroska,avi"
# FFmpeg has no protocol of this name, so that none is allowed.
NO_PROTOCOL = "none"
# How files begin that tell FFmpeg to open other files or addresses, for the message alone: what is
# allowed is decided by FORMATS.
SCRIPTS = {
    b"#EXTM3U": "an HLS playlist (m3u8)",
    b"ffconcat": "an ffconcat script",
    b"file ": "an ffconcat script",
    b"v=0": "an SDP session description",
    b"<?xml": "an XML manifest, such as DASH",
    b"<MPD": "a DASH manifest",
    b"[playlist]": "a playlist",
    b"RTSPtext": "a redirection to RTSP",
    b"rtsp:": "a redirection to RTSP",
}


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What decoding a whole file shows.

    Attributes:
        frames: number of decoded frames; 1 for an image.
        turned: whether its EXIF orientation or display matrix asks for a turn or a reflection.
    """

    frames: int
    turned: bool = False


def decode_seconds(size: int) -> float:
    """Return the processor time that decoding a file of `size` bytes may take, in seconds.

    It is about ten times what a long video takes on a slow core; only files that are made to waste
    time need more.
    """
    return BASE_SECONDS + SECONDS_PER_MEGABYTE * size / 1e6


class MemoryFile(io.RawIOBase):
    """A payload as a file, without a copy: a video may be as large as its shard.

    Args:
        payload: the bytes.
        seconds: processor time of this thread after which reading raises UndecodableError; no
            limit if None.
    """

    def __init__(self, payload: Payload, seconds: float | None = None) -> None:
        self._view = memoryview(payload)
        self._position = 0
        self._seconds = seconds
        self._start = time.thread_time()

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` with the bytes from the current position, as far as the payload reaches.

        Raises:
            UndecodableError: the time limit has passed.
        """
        self.check_time()
        chunk = self._view[self._position : self._position + len(buffer)]
        buffer[: len(chunk)] = chunk
        self._position += len(chunk)
        return len(chunk)

    def check_time(self) -> None:
        """Raise once the time limit has passed.

        Raises:
            UndecodableError: it has passed.
        """
        # Time of this thread: a busy machine must not decide which files a dataset holds.
        if self._seconds is not None and time.thread_time() - self._start > self._seconds:
            raise UndecodableError(
                f"decoding takes more than {self._seconds:,.0f} s of processor time, the limit for "
                "a file of its size. Encode it again"
            )

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position; one before the start becomes the start."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._view)}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def tell(self) -> int:
        """Return the current position."""
        return self._position


@contextmanager
def open_video(file: MemoryFile) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a container and its best video stream that is not a cover image.

    Whatever PyAV raises, here or in the body of the `with` statement, becomes UndecodableError.

    Raises:
        UndecodableError: the file is damaged, of another format than those allowed, larger than
            MAX_FRAME_PIXELS, or has no video stream.
    """
    limit = {"max_pixels": str(MAX_FRAME_PIXELS)}
    is_open = False
    try:
        with av.open(
            file,
            mode="r",
            options=limit,  # of the decoders that look into the streams
            container_options={"format_whitelist": FORMATS, "protocol_whitelist": NO_PROTOCOL},
            io_open=_refuse_to_open,
            # Titles in other encodings than UTF-8 are common, and no reason to refuse a video.
            metadata_errors="replace",
        ) as container:
            # PyAV has FFmpeg invent the times of packets that lack one, from their neighbours; in
            # an AVI with B-frames these are not the times of the frames.
            container.flags &= ~cast("int", Flags.gen_pts.value)
            is_open = True
            stream = _choose_stream(container)
            context = stream.codec_context
            require_frame_size(context.width, context.height)
            context.options = limit
            context.thread_count = 1
            yield container, stream
    except DataError:
        raise
    except av.FFmpegError as error:
        raise UndecodableError(_describe(error, file, is_open=is_open)) from error
    # A foreign file makes PyAV raise more than FFmpeg's errors: IndexError for a stream that
    # appears in the middle, ValueError for pixel formats that it does not know.
    except Exception as error:
        raise UndecodableError(
            f"no readable video (the decoder raised {type(error).__name__}: {error})"
        ) from error


def require_frame_size(width: int, height: int) -> None:
    """Refuse frames above the limit.

    Raises:
        UndecodableError: they have more than MAX_FRAME_PIXELS pixels.
    """
    if width * height > MAX_FRAME_PIXELS:
        raise UndecodableError(
            f"its frames of {width} × {height} are above toto's limit of {MAX_FRAME_PIXELS:,} "
            "pixels for videos. Scale it down"
        )


def _refuse_to_open(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise UndecodableError(f"it asks for another file or address ({url[:200]!r}), which is refused")


def _describe(error: av.FFmpegError, file: MemoryFile, *, is_open: bool) -> str:
    """Say why a file cannot be read, and what it is if it asks for other files."""
    if is_open and isinstance(error, av.ArgumentError):  # what decoders make of `max_pixels`
        return f"no readable video; are its frames above {MAX_FRAME_PIXELS:,} pixels, toto's limit?"
    if is_open:
        return f"no readable video ({error.strerror})"
    file.seek(0)
    head = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")
    for start, name in SCRIPTS.items():
        if head.startswith(start):
            return f"it is {name}, which names other files or addresses, and no video: refused"
    if isinstance(error, av.ArgumentError):  # what FFmpeg makes of its allow-list
        return "its content is not mp4, mov, mkv, webm or avi, whatever its name says. Convert it"
    return f"no readable video ({error.strerror})"


def _choose_stream(container: InputContainer) -> VideoStream:
    """Return FFmpeg's choice, or else the largest stream, of those that hold more than a cover."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        covers = len(container.streams.video)
        raise UndecodableError(
            "a file without a video stream" + (" other than a cover image" if covers else "")
        )
    streams = [stream for stream in streams if stream.codec_context is not None]
    if not streams:
        raise UndecodableError("a video of a codec that FFmpeg does not know")
    # Some covers are not marked as such: the container says that they are a single frame.
    streams = [stream for stream in streams if stream.frames != 1] or streams
    best = container.streams.best("video")
    for stream in streams:
        if best is not None and stream.index == best.index:
            return stream
    return max(streams, key=lambda stream: stream.width * stream.height)


class ClipBuilder:
    """Collects the frames of a clip and cuts them, so that few whole ones are in memory.

    Frames are cut together, which is faster, as soon as MAX_FRAME_PIXELS are waiting: one frame of
    the largest size, or 16 of 1080p.

    Args:
        cut: what is kept of the frames; all of them if None.
    """

    def __init__(self, cut: Cut | None = None) -> None:
        self._cut = cut
        self._waiting: list[Frame] = []
        self._finished: list[Frames] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, frame_HWC: Frame) -> None:
        """Append a frame, of the size of those before it."""
        self._waiting.append(frame_HWC)
        self._count += 1
        height, width, _ = frame_HWC.shape
        if (len(self._waiting) + 1) * height * width > MAX_FRAME_PIXELS:
            self._finish()

    def build(self) -> Frames:
        """Return the clip, `[T, H, W, 3]`, of one frame or more."""
        self._finish()
        return self._finished[0] if len(self._finished) == 1 else np.concatenate(self._finished)

    def _finish(self) -> None:
        if not self._waiting:
            return
        # `np.stack` would copy a large frame that is alone.
        single = len(self._waiting) == 1
        frames_THWC = self._waiting[0][None] if single else np.stack(self._waiting)
        self._waiting = []
        # A view would keep the whole frames in memory.
        self._finished.append(
            frames_THWC if self._cut is None else np.array(self._cut(frames_THWC))
        )


class FrameConverter:
    """Checks the frames of one video and converts them to RGB.

    A converter for each frame would cost six times as much.

    Args:
        orientation: whether display matrices are applied.
    """

    def __init__(self, orientation: Orientation = "upright") -> None:
        self._reformatter = VideoReformatter()
        self._is_upright = orientation == "upright"
        self._size: tuple[int, int] | None = None

    def check(self, frame: VideoFrame) -> None:
        """Refuse a frame that is too large, or not of the size of those before it.

        Raises:
            UndecodableError: it is.
        """
        size = (frame.width, frame.height)
        if self._size is None:
            require_frame_size(*size)
            self._size = size
        if size != self._size:
            width, height = self._size
            raise UndecodableError(
                f"the size of its frames changes from {width} × {height} to {size[0]} × "
                f"{size[1]}. Encode it again at one size"
            )

    def __call__(self, frame: VideoFrame) -> Frame:
        """Convert a frame.

        Raises:
            UndecodableError: see `check`.
        """
        self.check(frame)
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1)
        pixels = np.asarray(rgb.to_ndarray(), dtype=np.uint8)
        turn = read_turn(frame) if self._is_upright else None
        return pixels if turn is None else np.ascontiguousarray(turn(pixels))


@dataclass(frozen=True)
class Turn:
    """A turn by quarters and a reflection, as a display matrix or EXIF asks for.

    Attributes:
        transpose: exchange rows and columns first.
        flip_rows: then reverse the order of rows.
        flip_columns: and that of columns.
    """

    transpose: bool
    flip_rows: bool
    flip_columns: bool

    def __call__(self, pixels_HWC: Frame) -> Frame:
        """Return a view of the pixels as they are to be shown."""
        shown = pixels_HWC.swapaxes(0, 1) if self.transpose else pixels_HWC
        return shown[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


def read_turn(frame: VideoFrame) -> Turn | None:
    """Return the nearest turn to a frame's display matrix; None if there is nothing to do.

    The matrix maps (x, y) of the stored frame to (a x + c y, b x + d y) on the screen.
    """
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know the name of another entry, and then gives none at all
        angle = -np.deg2rad(frame.rotation)
        a, b = np.cos(angle), np.sin(angle)
        c, d = -b, a
    else:
        if matrix is None:
            return None
        a, b, _, c, d = np.frombuffer(cast("memoryview", matrix), dtype=np.int32)[:5].tolist()
    transpose = abs(b) > abs(a)
    turn = Turn(transpose, (b if transpose else d) < 0, (c if transpose else a) < 0)
    return None if turn == Turn(False, False, False) else turn
