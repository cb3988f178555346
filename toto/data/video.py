"""Videos to RGB frames with PyAV: all of them, or those of one clip from the last keyframe on.

Frame numbers count the frames that a decode of the whole file gives, in that order, whatever the
frame rate. Packets are not frames: some are never shown, and some cannot be decoded. One thread:
the loader's workers are the parallel part.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from av.video.frame import PictureType

from toto.data.video_file import (
    ClipBuilder,
    Cut,
    Frame,
    FrameConverter,
    Frames,
    MediaInfo,
    MemoryFile,
    Payload,
    UndecodableError,
    decode_seconds,
    open_video,
    read_turn,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from toto.data.manifest import Orientation

    _Packet = Packet[VideoStream]

__all__ = [
    "decode_clip",
    "decode_clip_plainly",
    "inspect_video",
    "iterate_video",
    "read_timeline",
]

# Here FFmpeg can leave out, exactly, frames that no other frame is predicted from. (HEVC's notion
# of such frames is that of one temporal layer.)
SKIPPABLE = frozenset({"h264"})
# Types of frames that need earlier ones.
PREDICTED = frozenset({PictureType.P, PictureType.B})
# The demuxer whose index lists every frame as soon as the file is open.
INDEXED = "mov"


def decode_clip(
    payload: Payload,
    start: int,
    count: int,
    stride: int,
    *,
    total: int,
    orientation: Orientation = "upright",
    cut: Cut | None = None,
) -> Frames:
    """Return frames start, start+stride, … of a video, equal to those of a decode of all frames.

    Decoding begins at the last keyframe that is shown no later than `start` and leaves out what no
    frame of the clip depends on, as far as the codec tells. This relies on the times of packets, so
    it is done only where there are as many times as frames; otherwise all frames are decoded.

    Args:
        payload: the encoded video.
        start: number of the first frame.
        count: T, frames of the clip.
        stride: distance between frames of the clip.
        total: frames of the whole video, as `inspect_video` counts them.
        orientation: whether display matrices are applied.
        cut: what is kept of the frames; see `ClipBuilder` for the memory. All of them if None.

    Returns:
        uint8 `[T, H, W, 3]`; H and W are those of `cut`.

    Raises:
        UndecodableError: the video is damaged or has no such frames.
    """
    wanted = range(start, start + (count - 1) * stride + 1, stride)
    try:
        clip = _seek_clip(payload, wanted, total, orientation, cut)
    except UndecodableError:
        # What cannot be decoded from the middle may well be decoded from the start, as packing did:
        # an index may be wrong about keyframes. If not, the plain path says why.
        clip = None
    if clip is None:
        return decode_clip_plainly(payload, start, count, stride, orientation=orientation, cut=cut)
    return clip


def decode_clip_plainly(
    payload: Payload,
    start: int,
    count: int,
    stride: int,
    *,
    orientation: Orientation = "upright",
    cut: Cut | None = None,
) -> Frames:
    """Return what `decode_clip` returns, by decoding all frames from the first on.

    Raises:
        UndecodableError: the video is damaged or has no such frames.
    """
    wanted = range(start, start + (count - 1) * stride + 1, stride)
    to_rgb = FrameConverter(orientation)
    clip = ClipBuilder(cut)
    with open_video(MemoryFile(payload)) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            to_rgb.check(frame)
            if number in wanted:
                clip.add(to_rgb(frame))
            if len(clip) == count:
                return clip.build()
    raise UndecodableError(
        f"{len(clip)} of the {count} frames from {start} on, every {stride}, can be decoded"
    )


def iterate_video(payload: Payload, orientation: Orientation = "upright") -> Iterator[Frame]:
    """Yield all frames of a video in order, uint8 `[H, W, 3]`.

    Raises:
        UndecodableError: the video is damaged, or the size of its frames changes.
    """
    to_rgb = FrameConverter(orientation)
    with open_video(MemoryFile(payload)) as (container, stream):
        for frame in container.decode(stream):
            yield to_rgb(frame)


def inspect_video(payload: Payload) -> MediaInfo:
    """Decode every frame of a video and count them.

    What packets say is not enough: some hold frames that are never shown, others cannot be decoded
    without a keyframe that is missing.

    Raises:
        UndecodableError: the file is damaged or cut short, decoding exceeds `decode_seconds`, the
            size of its frames changes, or its times contradict their order.
    """
    file = MemoryFile(payload, decode_seconds(len(payload)))
    to_rgb = FrameConverter()
    shown: list[int | None] = []
    times: list[int | None] = []
    packets = 0
    turned = False
    with open_video(file) as (container, stream):
        # This changes pixels and not what can be decoded.
        stream.codec_context.options |= {"skip_loop_filter": "all"}
        for packet in container.demux(stream):
            file.check_time()
            packets += packet.size > 0
            if _is_timed(packet):
                times.append(packet.pts if packet.dts is not None else None)
            for frame in stream.decode(packet):
                if not shown:
                    to_rgb(frame)  # its pixel format may be one that cannot be converted
                    turned = read_turn(frame) is not None
                to_rgb.check(frame)
                shown.append(frame.pts)
        if len(shown) == 1 and container.streams.audio:
            raise UndecodableError("a sound with a single image, such as a cover, and no video")
        listed = sum(entry.size > 0 for entry in stream.index_entries)
        if INDEXED in container.format.name.split(",") and packets < listed:
            raise UndecodableError(
                f"it is cut short: {packets:,} of its {listed:,} packets can be read"
            )
    if not shown:
        raise UndecodableError("a video without frames")
    # Where seeking will be used, by these times, it has to give these frames in this order.
    unique = set(times)
    is_seekable = None not in unique and len(unique) == len(times) == len(shown)
    if is_seekable and shown != sorted(time for time in times if time is not None):
        raise UndecodableError(
            "the times in the file contradict the order of its frames. Encode it again"
        )
    return MediaInfo(len(shown), turned)


@dataclass(frozen=True)
class Timeline:
    """When each frame is shown, in order, and the keyframes as (time shown, time to seek)."""

    pts: list[int]
    keyframes: list[tuple[int, int]]


@dataclass(frozen=True)
class _Plan:
    """The times of the wanted frames, and packets from a keyframe on that lead to them."""

    due: set[int]
    packets: Iterable[_Packet]


def _seek_clip(
    payload: Payload,
    wanted: range,
    total: int,
    orientation: Orientation = "upright",
    cut: Cut | None = None,
    *,
    by_index: bool = True,
) -> Frames | None:
    """Return the frames of those numbers, decoded from the last keyframe shown before them.

    None where the file's times do not lead to them. Where the index does not, or is not asked, all
    packets are read for their times.
    """
    with open_video(MemoryFile(payload)) as (container, stream):
        by_index = by_index and INDEXED in container.format.name.split(",")
        make_plan = _plan_by_index if by_index else _plan_by_timeline
        plan = make_plan(container, stream, wanted, total)
        if plan is not None:
            return _decode_due(stream, plan, FrameConverter(orientation), ClipBuilder(cut))
    if not by_index:
        return None
    return _seek_clip(payload, wanted, total, orientation, cut, by_index=False)


def _plan_by_index(
    container: InputContainer, stream: VideoStream, wanted: range, total: int
) -> _Plan | None:
    """Plan by the file's index and the packets around the clip alone, however long the video.

    What is coded before a keyframe is shown before it. So the number of a frame that is shown no
    earlier than the keyframe is that of the frames coded before the keyframe, and of those coded
    from there on that are shown before it. None where the index does not list `total` frames, or
    does not agree with the packets.
    """
    keyframes: list[tuple[int, int]] = []
    number = last = 0
    for entry in stream.index_entries:
        if entry.is_keyframe and (not keyframes or keyframes[-1][0] <= wanted.start):
            keyframes.append((number, entry.timestamp))
        number += not entry.is_discard and entry.size > 0
        last = entry.timestamp
    if number != total or wanted.stop > total:
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
    container: InputContainer, stream: VideoStream, wanted: range, total: int
) -> _Plan | None:
    """Plan by the times of all packets; None where these are not `total` times."""
    timeline = read_timeline(container, stream)
    if timeline is None or len(timeline.pts) != total or wanted.stop > total:
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


def _is_timed(packet: _Packet) -> bool:
    """Return whether a packet's time counts: not those of the end, of edit lists, or damaged."""
    return packet.size > 0 and not packet.is_discard and not packet.is_corrupt


def read_timeline(container: InputContainer, stream: VideoStream) -> Timeline | None:
    """Read the times of all frames from the packets alone; None where packets carry no times."""
    pts: list[int] = []
    keyframes: list[tuple[int, int]] = []
    for packet in container.demux(stream):
        if not _is_timed(packet):
            continue
        if packet.pts is None or packet.dts is None:
            return None
        pts.append(packet.pts)
        if packet.is_keyframe:
            keyframes.append((packet.pts, packet.dts))
    if len(set(pts)) != len(pts):
        return None
    return Timeline(sorted(pts), keyframes)


def _decode_due(
    stream: VideoStream, plan: _Plan, to_rgb: FrameConverter, clip: ClipBuilder
) -> Frames | None:
    """Return the frames of those times in their order.

    None where the packets do not hold all of them, and where a decode from the start would give
    other frames: where the decoder gives frames in another order than that of their times, where
    decoding began at a frame that is predicted from earlier ones (an index may call any packet a
    keyframe), and where the decoder concealed an error.
    """
    context = stream.codec_context
    unread = set(plan.due)
    first: int | None = None
    last: int | None = None

    def collect(frames: list[VideoFrame]) -> bool:
        nonlocal last
        for frame in frames:
            if frame.is_corrupt or (frame.pts == first and frame.pict_type in PREDICTED):
                return False
            if frame.pts is None:
                continue
            if last is not None and frame.pts <= last:
                return False
            last = frame.pts
            if frame.pts in plan.due:
                clip.add(to_rgb(frame))
        return True

    for packet in plan.packets:
        first = packet.pts if first is None else first
        if context.name in SKIPPABLE:
            context.skip_frame = "DEFAULT" if packet.pts in plan.due else "NONREF"
        if not collect(stream.decode(packet)):
            return None
        unread -= {packet.pts}
        if not unread:
            # Those that wait for their turn to be shown.
            return (
                clip.build()
                if collect(stream.decode(None)) and len(clip) == len(plan.due)
                else None
            )
    return None
