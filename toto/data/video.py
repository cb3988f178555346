"""Videos to RGB frames with PyAV: all of them, or those of one clip from the last keyframe on.

Videos are taken as they are stored: no rotation by a display matrix. Frame numbers count decoded
frames in the order of presentation, whatever the frame rate. One thread: the loader's workers are
the parallel part.
"""

from __future__ import annotations

import io
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from toto.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

    _Packet = Packet[VideoStream]

__all__ = [
    "Frame",
    "Frames",
    "MemoryFile",
    "Payload",
    "UndecodableError",
    "count_video_frames",
    "decode_clip",
    "decode_clip_plainly",
    "iterate_video",
]

Frame = npt.NDArray[np.uint8]
"""`[H, W, 3]` RGB."""
Frames = npt.NDArray[np.uint8]
"""`[T, H, W, 3]` RGB."""
Payload = bytes | memoryview

# Here FFmpeg can leave out, exactly, frames that no other frame is predicted from. (HEVC's notion
# of such frames is that of one temporal layer.)
SKIPPABLE = frozenset({"h264"})
# The demuxer whose index lists every frame as soon as the file is open.
INDEXED = "mov"


class UndecodableError(DataError):
    """A file that is broken, or not of the format that its name says."""


class MemoryFile(io.RawIOBase):
    """A payload as a file, without a copy: a video may be as large as its shard."""

    def __init__(self, payload: Payload) -> None:
        self._view = memoryview(payload)
        self._position = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` from here on, as far as the payload goes."""
        chunk = self._view[self._position : self._position + len(buffer)]
        buffer[: len(chunk)] = chunk
        self._position += len(chunk)
        return len(chunk)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; before the start is the start."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._view)}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def tell(self) -> int:
        """The place."""
        return self._position


def decode_clip(payload: Payload, start: int, count: int, stride: int) -> Frames:
    """Frames start, start+stride, … of a video, equal to those of a decode of all frames.

    Decoding begins at the last keyframe that is shown no later than `start` and leaves out what no
    frame of the clip depends on, as far as the codec tells.

    Raises:
        UndecodableError: the video is broken or has no such frames.
    """
    frames = _seek_clip(payload, range(start, start + (count - 1) * stride + 1, stride))
    if len(frames) < count:
        return decode_clip_plainly(payload, start, count, stride)
    return _stack(frames)


def decode_clip_plainly(payload: Payload, start: int, count: int, stride: int) -> Frames:
    """What `decode_clip` returns, by decoding all frames from the first on.

    Raises:
        UndecodableError: the video is broken or has no such frames.
    """
    wanted = range(start, start + (count - 1) * stride + 1, stride)
    frames: list[Frame] = []
    for rank, frame in enumerate(iterate_video(payload)):
        if rank in wanted:
            frames.append(frame)
        if len(frames) == count:
            return _stack(frames)
    raise UndecodableError(
        f"{len(frames)} of the {count} frames from {start} on, every {stride}, can be decoded"
    )


def iterate_video(payload: Payload) -> Iterator[Frame]:
    """All frames of a video, in order: the plain way.

    Raises:
        UndecodableError: the video is broken.
    """
    to_rgb = _ToRgb()
    with _open_video(payload) as (container, stream):
        for frame in container.decode(stream):
            yield to_rgb(frame)


def count_video_frames(payload: Payload) -> int:
    """Count a video's frames and decode its first and last one.

    Packets are counted, those left out that the edit list discards; where they carry no times, all
    frames are decoded.

    Raises:
        UndecodableError: the file is broken.
    """
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


@dataclass(frozen=True)
class _Plan:
    """The times of the wanted frames, and packets from a keyframe on that lead to them."""

    due: set[int]
    packets: Iterable[_Packet]


@contextmanager
def _open_video(payload: Payload) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A container and its first video stream; what FFmpeg raises becomes UndecodableError."""
    try:
        # Titles in other encodings than UTF-8 are common, and no reason to refuse a film.
        with av.open(MemoryFile(payload), mode="r", metadata_errors="replace") as container:
            if not container.streams.video:
                raise UndecodableError("a file without a video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise UndecodableError("a video of a codec that FFmpeg does not know")
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.FFmpegError as error:
        raise UndecodableError(f"no readable video ({error.strerror})") from error


def _seek_clip(payload: Payload, wanted: range, *, by_index: bool = True) -> list[Frame]:
    """The frames of those numbers, decoded from the last keyframe shown before them.

    Empty or incomplete where the file's times do not lead to them. Where the index does not, or is
    not asked, all packets are read for their times.
    """
    with _open_video(payload) as (container, stream):
        by_index = by_index and INDEXED in container.format.name.split(",")
        make_plan = _plan_by_index if by_index else _plan_by_timeline
        plan = make_plan(container, stream, wanted)
        if plan is not None:
            return _decode_due(stream, plan)
    return _seek_clip(payload, wanted, by_index=False) if by_index else []


def _plan_by_index(container: InputContainer, stream: VideoStream, wanted: range) -> _Plan | None:
    """From the file's index and the packets around the clip alone, however long the film.

    What is coded before a keyframe is shown before it. So the number of a frame that is shown no
    earlier than the keyframe is that of the frames coded before the keyframe, and of those coded
    from there on that are shown before it. None where the index is not complete, or does not agree
    with the packets.
    """
    keyframes: list[tuple[int, int]] = []
    number = last = 0
    for entry in stream.index_entries:
        if entry.is_keyframe and (not keyframes or keyframes[-1][0] <= wanted.start):
            keyframes.append((number, entry.timestamp))
        number += not entry.is_discard and entry.size > 0
        last = entry.timestamp
    if wanted.stop > number:
        return None
    if keyframes and keyframes[-1][0] <= wanted.start:
        keyframes.append((number, last + 1))
    # Frames may be shown before the keyframe that they follow: theirs is the one before it.
    for (before, first), (_, until) in list(pairwise(keyframes))[:-3:-1]:
        # FFmpeg takes a shift off this time, so it stands well inside the keyframe's stretch.
        container.seek((first + until) // 2, stream=stream, backward=True)
        packets = _read_packets(container, stream, wanted.stop - before)
        if not packets or packets[0].dts != first:
            return None
        pts = sorted(_shown(packets))
        due = {pts[frame - before] for frame in wanted}
        if len(set(pts)) == len(pts) and min(due) >= (packets[0].pts or 0):
            return _Plan(due, packets)
    return None


def _read_packets(
    container: InputContainer, stream: VideoStream, count: int
) -> list[_Packet] | None:
    """Packets from here on, until the first `count` frames to be shown are among them.

    None where there are fewer, or they do not stand in the order of decoding.
    """
    packets: list[_Packet] = []
    shown = 0
    for packet in container.demux(stream):
        if packet.pts is None or packet.dts is None or packet.is_corrupt:
            break
        late = packets and packet.dts < (packets[-1].dts or 0)
        if late or packet.pts < packet.dts or packet.size == 0:
            return None
        packets.append(packet)
        shown += not packet.is_discard
        # No later packet is shown before its own decoding.
        if shown >= count and sorted(_shown(packets))[count - 1] <= packet.dts:
            return packets
    return packets if shown >= count else None


def _shown(packets: list[_Packet]) -> list[int]:
    return [packet.pts for packet in packets if packet.pts is not None and not packet.is_discard]


def _plan_by_timeline(
    container: InputContainer, stream: VideoStream, wanted: range
) -> _Plan | None:
    """From the times of all packets: the plain way. None where they have none."""
    timeline = _read_timeline(container, stream)
    if timeline is None or wanted.stop > len(timeline.pts):
        return None
    due = {timeline.pts[number] for number in wanted}
    first = min(due)
    # Seeking goes by decoding times: at its own one, no later keyframe can be taken for it.
    container.seek(
        max((seek for shown, seek in timeline.keyframes if shown <= first), default=0),
        stream=stream,
        backward=True,
    )
    return _Plan(due, container.demux(stream))


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


def _decode_due(stream: VideoStream, plan: _Plan) -> list[Frame]:
    """The frames of those times in their order, as far as the packets hold them."""
    context = stream.codec_context
    to_rgb = _ToRgb()
    found: dict[int, Frame] = {}
    unread = set(plan.due)

    def collect(frames: list[VideoFrame]) -> None:
        for frame in frames:
            if frame.pts in plan.due:
                found[frame.pts] = to_rgb(frame)

    for packet in plan.packets:
        if context.name in SKIPPABLE:
            context.skip_frame = "DEFAULT" if packet.pts in plan.due else "NONREF"
        collect(stream.decode(packet))
        unread -= {packet.pts}
        if not unread:
            collect(stream.decode(None))  # those that wait for their turn to be shown
            break
    return [found[pts] for pts in sorted(found)]


class _ToRgb:
    """Converts the frames of one video. A converter for each frame costs six times as much."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> Frame:
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1)
        return np.asarray(rgb.to_ndarray(), dtype=np.uint8)


def _stack(frames: list[Frame]) -> Frames:
    if len({frame.shape for frame in frames}) > 1:
        raise UndecodableError("the size of its frames changes")
    return np.stack(frames)
