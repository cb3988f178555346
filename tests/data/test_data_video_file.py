"""Unusual files: every way of reading one numbers its frames alike, or refuses it."""

import io
import socket
import struct
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from toy_data import Codec, encode, moving_frames

import toto.data.video as video_module
import toto.data.video_file as video_file_module
from toto.data.decode import UndecodableError, decode_clip, inspect_media, iterate_video
from toto.data.encode import encode_h264
from toto.data.transforms import square, square_cut
from toto.data.video import _seek_clip, decode_clip_plainly
from toto.data.video_file import MAX_FRAME_PIXELS, ClipBuilder, MemoryFile, decode_seconds

FRAMES = 30
SHOW_FRAME = 0x10
"""A bit of the first byte of a VP8 packet (RFC 6386, 9.1)."""


def encode_vp8_with_hidden_frames():
    """Every seventh packet is made one that is decoded and not shown, as alternate references."""
    video = encode(moving_frames(FRAMES + 5), Codec("webm", "libvpx", (("g", "40"),)))

    def hide_some(packet):
        if packet.pts // 40 % 7 == 3:
            packet.update(bytes([bytes(packet)[0] & ~SHOW_FRAME]) + bytes(packet)[1:])

    return remux(video, "webm", change=hide_some)


def remux(payload, container, *, first=0, change=lambda packet: None):
    """The packets of a video from `first` on, changed, in another container."""
    file = io.BytesIO()
    with av.open(io.BytesIO(payload)) as source, av.open(file, "w", format=container) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.dts is not None and number >= first:
                packet.stream = stream
                change(packet)
                output.mux(packet)
    return file.getvalue()


def encode_without_first_keyframe():
    video = encode(
        moving_frames(FRAMES + 3), Codec("matroska", "libx264", (("g", "8"), ("bf", "0")))
    )
    return remux(video, "matroska", first=5)


def encode_fragments():
    options = (("movflags", "frag_keyframe+empty_moov+default_base_moof"),)
    return encode(moving_frames(FRAMES), Codec("mp4", "libx264", (("g", "8"),), muxer=options))


def encode_with_edit_list():
    file = io.BytesIO()
    options = {"use_editlist": "1", "avoid_negative_ts": "disabled"}
    whole = encode(moving_frames(FRAMES), Codec("mp4", "libx264", (("g", "8"), ("bf", "2"))))
    with (
        av.open(io.BytesIO(whole)) as source,
        av.open(file, "w", format="mp4", options=options) as cut,
    ):
        stream = cut.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.dts = (t - 3 * packet.duration for t in (packet.pts, packet.dts))
                packet.stream = stream
                cut.mux(packet)
    return file.getvalue()


def by(container, codec, pixels="yuv420p", **options):
    named = tuple((name.replace("_", "-"), str(value)) for name, value in options.items())
    return lambda: encode(moving_frames(FRAMES), Codec(container, codec, named, pixels))


VIDEOS = {
    "vp8, hidden frames": encode_vp8_with_hidden_frames,
    "h264, no first keyframe": encode_without_first_keyframe,
    "h264, fragments": encode_fragments,
    "h264, edit list": encode_with_edit_list,
    "h264, B-frames, mp4": by("mp4", "libx264", g=8, bf=3),
    "h264, B-frames, mkv": by("matroska", "libx264", g=8, bf=3),
    "h264, B-frames, avi": by("avi", "libx264", g=8, bf=2),
    "h264, mp4 remuxed to mkv": lambda: remux(by("mp4", "libx264", g=8)(), "matroska"),
    # Encoded once, by libx265 from the same frames: the encoder of PyAV 18 writes past its memory.
    "hevc, mp4": Path(__file__).with_name("hevc.mp4").read_bytes,
    "hevc, mkv": lambda: remux(VIDEOS["hevc, mp4"](), "matroska"),
    "vp9, webm": by("webm", "libvpx-vp9", g=12, auto_alt_ref=1, lag_in_frames=12, cpu_used=8),
    "vp9, mp4": by("mp4", "libvpx-vp9", g=12, auto_alt_ref=1, lag_in_frames=12, cpu_used=8),
    "mpeg4, avi": by("avi", "mpeg4", g=8, bf=2),
    "mpeg4, mkv": by("matroska", "mpeg4", g=8, bf=2),
    "mjpeg, avi": by("avi", "mjpeg", "yuvj420p"),
}
if "libsvtav1" in av.codec.codecs_available:
    VIDEOS["av1, mp4"] = by("mp4", "libsvtav1", preset=12, g=12, svtav1_params="lp=1")
    VIDEOS["av1, mkv"] = by("matroska", "libsvtav1", preset=12, g=12, svtav1_params="lp=1")
COUNTS = {"h264, no first keyframe": 25, "h264, edit list": 27}


def count_packets(payload):
    with av.open(io.BytesIO(payload)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


@pytest.mark.parametrize("name", VIDEOS)
def test_whole_and_clip_number_frames_alike(name):
    payload = VIDEOS[name]()
    whole = list(iterate_video(payload))
    assert inspect_media("videos", payload).frames == len(whole) == COUNTS.get(name, FRAMES)
    for number, frame in enumerate(whole):
        (found,) = decode_clip(payload, number, 1, 1, total=len(whole))
        assert np.array_equal(found, frame), number
    for start, count, stride in ((0, 5, 4), (3, 4, 6), (len(whole) - 4, 4, 1)):
        clip = decode_clip(payload, start, count, stride, total=len(whole))
        assert np.array_equal(clip, np.stack(whole[start::stride][:count]))
        assert np.array_equal(clip, decode_clip_plainly(payload, start, count, stride))


@pytest.mark.parametrize("name", ["vp8, hidden frames", "h264, no first keyframe"])
def test_seeking_is_not_used_where_packets_are_not_frames(name):
    payload = VIDEOS[name]()
    total = inspect_media("videos", payload).frames
    assert count_packets(payload) > total
    assert _seek_clip(payload, range(4, 9, 4), total) is None


def test_seeking_is_used_where_it_can_be():
    for name in ("h264, B-frames, mp4", "vp9, webm", "h264, fragments", "h264, edit list"):
        payload = VIDEOS[name]()
        total = inspect_media("videos", payload).frames
        assert _seek_clip(payload, range(12, 17, 4), total) is not None, name


def flag_as_keyframes(payload, container):
    """Every packet of the video is called a keyframe, as faulty writers of AVI do."""

    def flag(packet):
        packet.is_keyframe = True

    return remux(payload, container, change=flag)


def test_a_clip_is_exact_where_the_index_is_wrong_about_keyframes():
    for container, codec in (("avi", "msmpeg4"), ("matroska", "msmpeg4"), ("mp4", "libvpx-vp9")):
        payload = flag_as_keyframes(by(container, codec, g=9)(), container)
        whole = list(iterate_video(payload))
        assert inspect_media("videos", payload).frames == len(whole) == FRAMES
        for start in range(2, FRAMES - 5, 5):
            clip = decode_clip(payload, start, 2, 4, total=len(whole))
            assert np.array_equal(clip, np.stack(whole[start : start + 5 : 4])), (codec, start)


def test_a_clip_is_exact_where_a_keyframe_is_damaged():
    def damage(packet):
        if packet.is_keyframe and packet.pts:
            payload = bytearray(bytes(packet))
            payload[len(payload) // 2] ^= 255
            packet.update(bytes(payload))

    payload = remux(by("avi", "msmpeg4", g=9)(), "avi", change=damage)
    whole = list(iterate_video(payload))
    assert inspect_media("videos", payload).frames == len(whole)
    for start in range(7, 24):
        clip = decode_clip(payload, start, 2, 3, total=len(whole))
        assert np.array_equal(clip, np.stack(whole[start : start + 4 : 3])), start


def test_times_that_contradict_the_order_of_frames_are_refused():
    def show_when_decoded(packet):
        packet.pts = packet.dts

    payload = remux(VIDEOS["h264, B-frames, mp4"](), "mp4", change=show_when_decoded)
    with pytest.raises(UndecodableError, match="times in the file contradict the order"):
        inspect_media("videos", payload)


# --- streams -------------------------------------------------------------------------------------


def encode_with_cover(container, *, flagged=True, video=True, cover_first=True):
    """A video, a sound or both, and an image as a stream of its own."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:

        def add_cover():
            cover = output.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt = 16, 16, "yuvj420p"
            if flagged:
                cover.disposition = Disposition.attached_pic
            return cover

        cover = add_cover() if cover_first else None
        if video:
            stream = output.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        sound = output.add_stream("aac", rate=16000)
        cover = cover or add_cover()
        image = av.VideoFrame.from_ndarray(moving_frames(1, 16, 16)[0], format="rgb24")
        output.mux(cover.encode(image))
        output.mux(cover.encode(None))
        if video:
            for frame in moving_frames(9):
                output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            output.mux(stream.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        silence.sample_rate = 16000
        output.mux(sound.encode(silence))
        output.mux(sound.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("flagged", [True, False])
@pytest.mark.parametrize("cover_first", [True, False])
def test_a_cover_is_not_taken_for_the_video(flagged, cover_first):
    payload = encode_with_cover("mp4", flagged=flagged, cover_first=cover_first)
    assert inspect_media("videos", payload).frames == 9
    assert decode_clip(payload, 2, 2, 3, total=9).shape == (2, 32, 48, 3)


def test_sound_with_a_cover_is_refused():
    payload = encode_with_cover("mp4", video=False)
    with pytest.raises(UndecodableError, match="without a video stream other than a cover image"):
        inspect_media("videos", payload)
    for container in ("mp4", "matroska"):
        payload = encode_with_cover(container, video=False, flagged=False)
        with pytest.raises(UndecodableError, match="sound with a single image"):
            inspect_media("videos", payload)


# --- orientation ---------------------------------------------------------------------------------

IDENTITY = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
# (a, b, c, d) of x' = a x + c y, y' = b x + d y → the same in numpy.
MATRICES = {
    "turned by 90 degrees": ((0, 1, -1, 0), lambda f: np.rot90(f, -1)),
    "turned by 180 degrees": ((-1, 0, 0, -1), lambda f: np.rot90(f, 2)),
    "turned by 270 degrees": ((0, -1, 1, 0), lambda f: np.rot90(f, 1)),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "upside down": ((1, 0, 0, -1), np.flipud),
    "transposed": ((0, 1, 1, 0), lambda f: f.swapaxes(0, 1)),
    "transposed the other way": ((0, -1, -1, 0), lambda f: np.rot90(f, 2).swapaxes(0, 1)),
}


def with_matrix(payload, a, b, c, d):
    """An mp4 with another display matrix in the header of its track."""
    values = [65536 * value for value in (a, b, 0, c, d)]
    matrix = struct.pack(">9i", values[0], values[1], 0, values[3], values[4], 0, 0, 0, 1 << 30)
    place = payload.index(IDENTITY, payload.index(b"tkhd"))
    return payload[:place] + matrix + payload[place + len(matrix) :]


@pytest.mark.parametrize("name", MATRICES)
def test_a_display_matrix_is_applied_unless_asked_otherwise(name):
    matrix, turn = MATRICES[name]
    stored = encode_h264(moving_frames(9), fps=25)
    payload = with_matrix(stored, *matrix)
    plain = list(iterate_video(stored))
    info = inspect_media("videos", payload)
    assert (info.frames, info.turned) == (9, True)
    assert not inspect_media("videos", stored).turned
    upright = list(iterate_video(payload))
    for number, frame in enumerate(plain):
        assert np.array_equal(upright[number], turn(frame))
    wanted = [turn(plain[1]), turn(plain[5])]
    assert np.array_equal(decode_clip(payload, 1, 2, 4, total=9), wanted)
    as_stored = decode_clip(payload, 1, 2, 4, total=9, orientation="stored")
    assert np.array_equal(as_stored, [plain[1], plain[5]])
    assert np.array_equal(next(iterate_video(payload, "stored")), plain[0])


# --- limits and hostile files --------------------------------------------------------------------


def test_a_video_whose_size_changes_is_refused_by_all():
    parts = [encode(moving_frames(6, *size), VP8) for size in ((48, 64), (96, 128))]
    payload = join_webm(*parts)
    message = "size of its frames changes from 64 × 48 to 128 × 96"
    with pytest.raises(UndecodableError, match=message):
        inspect_media("videos", payload)
    with pytest.raises(UndecodableError, match=message):
        list(iterate_video(payload))
    with pytest.raises(UndecodableError, match=message):
        decode_clip(payload, 0, 3, 4, total=12)


VP8 = Codec("webm", "libvpx", (("deadline", "realtime"),))


def join_webm(first, second):
    """The packets of two videos in one stream, which has the header of the first."""
    file = io.BytesIO()
    with av.open(io.BytesIO(first)) as source, av.open(file, "w", format="webm") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        shift = 0
        for payload in (first, second):
            with av.open(io.BytesIO(payload)) as part:
                for packet in part.demux(video=0):
                    if packet.dts is not None:
                        last = packet.pts
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = stream
                        output.mux(packet)
                shift += last + 40
    return file.getvalue()


def test_a_cut_mp4_is_refused_by_all():
    payload = encode_fragments()
    middle_of_last = payload.rindex(b"mdat") + 40
    for read in (inspect_media, lambda _, cut: list(iterate_video(cut))):
        with pytest.raises(UndecodableError):
            read("videos", payload[:middle_of_last])


def test_an_mp4_that_lacks_packets_of_its_index_is_refused(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuvj420p"
        for frame in moving_frames(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    payload = (tmp_path / "a.mp4").read_bytes()
    assert inspect_media("videos", payload).frames == FRAMES
    for tenths in (5, 7, 9):
        with pytest.raises(UndecodableError):
            inspect_media("videos", payload[: len(payload) * tenths // 10])
    with av.open(io.BytesIO(payload)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    # Between two packets there is nothing damaged, only less than the index lists.
    with pytest.raises(UndecodableError, match="cut short: 20 of its 30 packets"):
        inspect_media("videos", payload[: places[20]])


@pytest.mark.parametrize("error", [IndexError("list index out of range"), ValueError("x"), OSError])
def test_whatever_the_decoder_raises_is_named(monkeypatch, error):
    def fail(container):
        raise error

    monkeypatch.setattr(video_file_module, "_choose_stream", fail)
    with pytest.raises(UndecodableError, match="no readable video"):
        inspect_media("videos", encode_h264(moving_frames(3), fps=25))


def scripts(port):
    """Files that tell FFmpeg to open others, or the network."""
    return {
        "SDP": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        f"m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "ffconcat": "ffconcat version 1.0\nfile other.mp4\n",
        "HLS": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n"
        f"http://127.0.0.1:{port}/a.mp4\n#EXT-X-ENDLIST\n",
        "DASH": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
        f"<BaseURL>http://127.0.0.1:{port}/</BaseURL></MPD>",
    }


@pytest.mark.parametrize("name", ["SDP", "ffconcat", "HLS", "DASH"])
def test_a_file_that_names_others_is_refused_by_name_and_followed_nowhere(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.mp4").write_bytes(encode_h264(moving_frames(3), fps=25))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        payload = scripts(server.getsockname()[1])[name].encode()
        for read in (inspect_media, lambda _, data: list(iterate_video(data))):
            with pytest.raises(UndecodableError, match=f"{name}.*refused"):
                read("videos", payload)
        with pytest.raises(UndecodableError, match=f"{name}.*refused"):
            decode_clip(payload, 0, 1, 1, total=3)
        with pytest.raises(TimeoutError):
            server.accept()


def test_no_format_but_those_allowed_is_opened():
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for frame in moving_frames(9):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(UndecodableError, match="not mp4, mov, mkv, webm or avi"):
        inspect_media("videos", file.getvalue())


def test_frames_above_the_limit_are_refused_before_they_are_decoded():
    side = int(MAX_FRAME_PIXELS**0.5) + 2
    frame = av.VideoFrame(side, side, "yuv420p")
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    script = (
        "import resource, sys\n"
        "from toto.data.decode import inspect_media, UndecodableError\n"
        "payload = sys.stdin.buffer.read()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    inspect_media('videos', payload)\n"
        "except UndecodableError as error:\n    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=file.getvalue(), capture_output=True, check=True
    )
    message, grown = done.stdout.decode().splitlines()
    assert f"{MAX_FRAME_PIXELS:,} pixels, toto's limit" in message
    assert int(grown) < 40_000  # kB; a frame takes 50 MB as YUV, 100 MB as RGB


@pytest.mark.parametrize("plain", [False, True])
def test_a_clip_needs_the_memory_of_one_large_frame(monkeypatch, plain):
    count, (height, width) = 12, (512, 768)
    payload = encode_h264(moving_frames(count, height, width), fps=25)
    cut = square_cut(32, crop_y=0.3, crop_x=0.6)
    decode = decode_clip_plainly if plain else partial(decode_clip, total=count)
    whole = decode(payload, 0, count, 1)
    expected = square(whole, 32, crop_y=0.3, crop_x=0.6)
    assert np.array_equal(decode(payload, 0, count, 1, cut=cut), expected)
    monkeypatch.setattr(video_file_module, "MAX_FRAME_PIXELS", height * width)
    tracemalloc.start()
    assert np.array_equal(decode(payload, 0, count, 1, cut=cut), expected)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The frame, its square, and room; NumPy's memory, which is where frames are.
    assert peak < 2.5 * height * width * 3


def test_frames_are_cut_together_up_to_the_limit(monkeypatch):
    monkeypatch.setattr(video_file_module, "MAX_FRAME_PIXELS", 7 * 32 * 48)
    sizes = []

    def cut(frames_THWC):
        sizes.append(len(frames_THWC))
        return frames_THWC[:, :8, :8]

    clip = ClipBuilder(cut)
    frames = moving_frames(16)
    for frame in frames:
        clip.add(frame)
    assert np.array_equal(clip.build(), np.stack(frames)[:, :8, :8])
    assert sizes == [7, 7, 2]


def test_decoding_ends_at_its_time_limit(monkeypatch):
    payload = encode_h264(moving_frames(9), fps=25)
    assert decode_seconds(10**9) > 3600
    monkeypatch.setattr(video_module, "decode_seconds", lambda size: 0.0)
    with pytest.raises(UndecodableError, match="takes more than 0 s of processor time"):
        inspect_media("videos", payload)
    with pytest.raises(UndecodableError, match="processor time"):
        MemoryFile(payload, seconds=0.0).read(4)
