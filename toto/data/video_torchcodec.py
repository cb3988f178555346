"""Clips with torchcodec where it is installed (`data.decoder: torchcodec`): the frames of PyAV.

Both call FFmpeg; colours may differ by a rounding where the two bring another build of it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from toto.data.video import decode_clip, read_timeline
from toto.data.video_file import (
    MAX_FRAME_PIXELS,
    ClipBuilder,
    Cut,
    Frames,
    MemoryFile,
    Payload,
    UndecodableError,
    open_video,
    read_turn,
)
from toto.errors import DataError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from av.container import InputContainer
    from av.video.stream import VideoStream

    from toto.data.manifest import Orientation

__all__ = ["decode_clip_by_torchcodec", "require_torchcodec"]


def require_torchcodec() -> Callable[..., Any]:
    """Its VideoDecoder.

    Raises:
        UserError: torchcodec is not installed, or does not find the libraries that it needs.
    """
    try:
        from torchcodec.decoders import VideoDecoder
    # Its libraries are loaded at the import, and what is missing raises one of these.
    except (ImportError, OSError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"data.decoder is torchcodec, which cannot be imported ({reason}). Install it (pip "
            "install torchcodec; with a torch for CPUs: torchcodec==0.11.1) and FFmpeg's shared "
            "libraries, or set data.decoder to pyav"
        ) from error
    decoder: Callable[..., Any] = VideoDecoder
    return decoder


def decode_clip_by_torchcodec(
    payload: Payload,
    start: int,
    count: int,
    stride: int,
    *,
    total: int,
    orientation: Orientation = "upright",
    cut: Cut | None = None,
) -> Frames:
    """Return frames start, start+stride, … of a video, as `decode_clip` does.

    torchcodec has no allow-list of formats, may take a cover for the video, applies the turns of
    display matrices always and their reflections never, numbers packets by times that may be
    missing, and shows frames that an edit list hides. So PyAV opens each file first, and decodes
    those in which that would matter.

    Raises:
        UndecodableError: the video is damaged or has no such frames.
        UserError: torchcodec cannot be imported.
    """
    video_decoder = require_torchcodec()
    by_pyav = partial(
        decode_clip, payload, start, count, stride, total=total, orientation=orientation, cut=cut
    )
    with open_video(MemoryFile(payload)) as (container, stream):
        index = stream.index
        # It gives all frames that it is asked for at once, as large as they are in the file.
        at_once = max(MAX_FRAME_PIXELS // max(stream.width * stream.height, 1), 1)
        if not _is_plain(container, stream, total):
            return by_pyav()
    try:
        video = video_decoder(
            MemoryFile(payload),
            stream_index=index,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            seek_mode="exact",
        )
        numbers = list(range(start, start + (count - 1) * stride + 1, stride))
        clip = ClipBuilder(cut)
        for first in range(0, count, at_once):
            for frame in video.get_frames_at(numbers[first : first + at_once]).data.numpy():
                clip.add(frame)
        return clip.build()
    except DataError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UndecodableError(f"torchcodec: {lines[0]}") from error


def _is_plain(container: InputContainer, stream: VideoStream, total: int) -> bool:
    """Return whether every packet is a frame with a time, none hidden, turned or reflected."""
    timeline = read_timeline(container, stream)
    if timeline is None or len(timeline.pts) != total or not timeline.keyframes:
        return False
    if any(entry.is_discard for entry in stream.index_entries):
        return False
    _, start = timeline.keyframes[0]
    container.seek(start, stream=stream, backward=True)
    first = next(container.decode(stream), None)
    return first is not None and read_turn(first) is None
