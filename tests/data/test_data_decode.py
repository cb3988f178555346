import io

import av
import numpy as np
import pytest
from PIL import Image
from toy_data import Codec, encode, moving_frames, png, random_picture

from toto.data.decode import (
    UndecodableError,
    check_image,
    decode_clip,
    decode_image,
    inspect_media,
    iterate_video,
)
from toto.data.transforms import square, square_plainly
from toto.data.video import _plan_by_index, _seek_clip, decode_clip_plainly
from toto.data.video_file import MemoryFile, open_video

CODECS = {
    "h264, short GOPs": Codec("mp4", "libx264", (("g", "7"), ("bf", "3"))),
    "h264, open GOPs": Codec(
        "mp4", "libx264", (("g", "9"), ("x264-params", "open-gop=1:bframes=3"))
    ),
    "h264, intra": Codec("matroska", "libx264", (("g", "1"),)),
    "h264, one GOP": Codec("mov", "libx264"),
    "mpeg4, avi": Codec("avi", "mpeg4", (("g", "10"), ("bf", "2"))),
    "h264, B pyramid": Codec(
        "mp4", "libx264", (("g", "20"), ("bf", "5"), ("b_strategy", "2"), ("refs", "5"))
    ),
    "h264, interlaced": Codec("mp4", "libx264", (("g", "12"), ("flags", "+ildct+ilme"))),
    "h264, 4:4:4, full range": Codec(
        "mp4", "libx264", (("g", "12"), ("color_range", "pc"), ("colorspace", "bt709")), "yuv444p"
    ),
    "h264, fragments": Codec(
        "mp4", "libx264", (("g", "10"),), muxer=(("movflags", "frag_keyframe+empty_moov"),)
    ),
    "vp8, webm": Codec(
        "webm", "libvpx", (("g", "12"), ("cpu-used", "8"), ("deadline", "realtime"))
    ),
}
INDEXED = ["h264, short GOPs", "h264, open GOPs", "h264, one GOP", "h264, B pyramid"]
# Without times in its packets, an AVI is decoded from its start.
SEEKABLE = [name for name in CODECS if "avi" not in name]


@pytest.fixture(scope="module")
def videos():
    return {name: encode(moving_frames(45), codec) for name, codec in CODECS.items()}


@pytest.mark.parametrize("name", CODECS)
def test_clips_equal_a_decode_of_all_frames(videos, name):
    whole = np.stack(list(iterate_video(videos[name])))
    assert len(whole) == inspect_media("videos", videos[name]).frames == 45
    for start, count, stride in (
        (0, 45, 1),
        (0, 1, 1),
        (13, 6, 4),
        (7, 3, 1),
        (30, 8, 2),
        (44, 1, 9),
    ):
        clip = decode_clip(videos[name], start, count, stride, total=45)
        assert np.array_equal(clip, whole[start::stride][:count]), (start, count, stride)
        assert np.array_equal(clip, decode_clip_plainly(videos[name], start, count, stride))


@pytest.mark.parametrize("by_index", [True, False])
@pytest.mark.parametrize("name", SEEKABLE)
def test_every_single_frame_is_found_by_seeking(videos, name, by_index):
    whole = list(iterate_video(videos[name]))
    for number, frame in enumerate(whole):
        (found,) = _seek_clip(videos[name], range(number, number + 1), 45, by_index=by_index)
        assert np.array_equal(found, frame), number


@pytest.mark.parametrize("name", INDEXED)
def test_the_index_leads_to_a_clip_by_the_packets_around_it(videos, name):
    for start in range(40):
        with open_video(MemoryFile(videos[name])) as (container, stream):
            plan = _plan_by_index(container, stream, range(start, start + 4, 3), 45)
        assert plan is not None, start
        if name == "h264, short GOPs":
            assert len(plan.packets) <= 7 + 5 + 7, start


def test_frames_that_an_edit_list_hides_are_not_counted(videos):
    file = io.BytesIO()
    options = {"use_editlist": "1", "avoid_negative_ts": "disabled"}
    with (
        av.open(io.BytesIO(videos["h264, short GOPs"])) as source,
        av.open(file, "w", format="mp4", options=options) as cut,
    ):
        video = source.streams.video[0]
        stream = cut.add_stream_from_template(video)
        for packet in source.demux(video):
            if packet.dts is not None:
                hidden = 5 * packet.duration
                packet.pts, packet.dts = packet.pts - hidden, packet.dts - hidden
                packet.stream = stream
                cut.mux(packet)
    whole = list(iterate_video(file.getvalue()))
    everything = list(iterate_video(videos["h264, short GOPs"]))
    assert len(whole) == inspect_media("videos", file.getvalue()).frames == 40
    for number, frame in enumerate(whole):
        assert np.array_equal(frame, everything[number + 5])
        (found,) = decode_clip(file.getvalue(), number, 1, 1, total=40)
        assert np.array_equal(found, frame), number


def test_frames_look_like_what_was_encoded(videos):
    whole = np.stack(list(iterate_video(videos["h264, one GOP"]))).astype(int)
    assert np.median(np.abs(whole - moving_frames(45))) < 8


def test_a_memoryview_decodes_like_bytes(videos):
    payload = videos["h264, short GOPs"]
    clip = decode_clip(memoryview(payload), 5, 3, 2, total=45)
    assert np.array_equal(clip, decode_clip(payload, 5, 3, 2, total=45))


def test_frames_beyond_the_end_are_refused(videos):
    with pytest.raises(UndecodableError, match="5 of the 6 frames from 40"):
        decode_clip(videos["h264, short GOPs"], 40, 6, 1, total=45)


@pytest.mark.parametrize(
    ("container", "message"),
    [("mov", "without a video stream"), ("wav", "its content is not mp4")],
)
def test_a_file_without_video_is_refused(container, message):
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        output.mux(stream.encode(sound))
        output.mux(stream.encode(None))
    with pytest.raises(UndecodableError, match=message):
        inspect_media("videos", file.getvalue())


@pytest.mark.parametrize("payload", [b"", b"nonsense" * 100])
@pytest.mark.parametrize("kind", ["images", "videos"])
def test_nonsense_is_refused(kind, payload):
    with pytest.raises(UndecodableError):
        inspect_media(kind, payload)


def damaged(payload, seed):
    """Some bytes changed, bits flipped, or the end cut off; half of them in an mp4's tables."""
    rng = np.random.default_rng(seed)
    broken = bytearray(payload)
    if seed % 5 == 0:
        broken = broken[: rng.integers(1, len(broken))]
    first = max(broken.find(b"moov"), 0) if seed % 2 else 0
    for place in rng.integers(first, len(broken), rng.integers(1, 30)):
        broken[place] = rng.integers(256) if seed % 3 else broken[place] ^ 1 << rng.integers(8)
    return bytes(broken)


@pytest.mark.parametrize("name", ["picture", *CODECS])
def test_damaged_files_raise_nothing_but_undecodable(videos, name):
    kind = "images" if name == "picture" else "videos"
    whole = png(random_picture(0)) if name == "picture" else videos[name]
    refused = 0
    for seed in range(200):
        broken = damaged(whole, seed)
        try:
            total = inspect_media(kind, broken).frames
            if kind == "videos":
                decode_clip(broken, seed % 30, 4, 3, total=total)
            else:
                decode_image(broken)
        except UndecodableError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("name", CODECS)
def test_a_truncated_video_has_no_frames_behind_its_end(videos, name):
    half = videos[name][: len(videos[name]) // 2]
    with pytest.raises(UndecodableError):
        decode_clip(half, 38, 3, 2, total=45)


@pytest.mark.parametrize("size", [(63, 97), (97, 63), (64, 64), (256, 341)])
@pytest.mark.parametrize("name", ["h264, short GOPs", "h264, 4:4:4, full range", "vp8, webm"])
def test_the_crop_of_a_clip_equals_that_of_the_plain_path(name, size):
    pixels = "yuv444p" if "4:4:4" in name else "yuv420p"
    even = [side - side % 2 for side in size] if pixels == "yuv420p" and "h264" in name else size
    video = encode(moving_frames(20, *even), CODECS[name])
    place = {"crop_y": 0.3, "crop_x": 0.7}
    plain = square_plainly(decode_clip_plainly(video, 3, 4, 4), 48, **place).astype(int)
    off = np.abs(square(decode_clip(video, 3, 4, 4, total=20), 48, **place) - plain)
    assert off.max() <= 2
    assert off.mean() < 0.05


def test_a_picture_decodes_exactly():
    picture = random_picture(3, 5, 7)
    assert np.array_equal(decode_image(png(picture)), picture)


def _saved(image, form="PNG"):
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def test_other_modes_become_rgb():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for image in (
        Image.fromarray(grey),
        Image.fromarray(grey).convert("RGBA"),
        Image.fromarray(grey.astype(np.uint16) * 256 + 17),
    ):
        assert np.array_equal(decode_image(_saved(image)), np.repeat(grey[..., None], 3, axis=2))


def test_other_formats_are_refused():
    with pytest.raises(UndecodableError):
        decode_image(_saved(Image.new("RGB", (4, 4)), "BMP"))


def jpeg(picture, **options):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", **options)
    return file.getvalue()


def is_whole(read, payload):
    try:
        read(payload)
    except UndecodableError:
        return False
    return True


JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "4:4:4": {"subsampling": 0, "quality": 95},
    "restarts": {"restart_marker_rows": 1},
    "optimised": {"optimize": True},
}


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("smooth", [False, True])
def test_the_check_of_a_jpeg_finds_every_cut_that_a_decode_finds(name, smooth):
    picture = moving_frames(1, 61, 75)[0] if smooth else random_picture(3, 61, 75)
    whole = jpeg(picture, **JPEGS[name])
    assert is_whole(check_image, whole)
    for end in range(len(whole)):
        cut = whole[:end]
        assert is_whole(check_image, cut) == is_whole(decode_image, cut), end
    assert not is_whole(check_image, whole[: len(whole) * 9 // 10])


def test_the_check_of_a_jpeg_agrees_with_a_decode_over_damaged_bytes():
    whole = jpeg(random_picture(4, 61, 75))
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(400):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(256)
        payload = bytes(damaged)
        verdicts.append(is_whole(decode_image, payload))
        assert is_whole(check_image, payload) == verdicts[-1]
    assert {True, False} == set(verdicts)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_pass_the_check(mode):
    file = io.BytesIO()
    Image.fromarray(random_picture(1)).convert(mode).save(file, "JPEG")
    check_image(file.getvalue())
