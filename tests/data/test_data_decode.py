import io

import av
import numpy as np
import pytest
from PIL import Image
from toy_data import Codec, encode, moving_frames, png, random_picture

from toto.data.decode import (
    UndecodableError,
    _seek_clip,
    check_image,
    count_frames,
    decode_clip,
    decode_image,
    iterate_video,
)
from toto.data.encode import encode_h264

CODECS = {
    "h264, short GOPs": Codec("mp4", "libx264", (("g", "7"), ("bf", "3"))),
    "h264, open GOPs": Codec(
        "mp4", "libx264", (("g", "9"), ("x264-params", "open-gop=1:bframes=3"))
    ),
    "h264, intra": Codec("matroska", "libx264", (("g", "1"),)),
    "h264, one GOP": Codec("mov", "libx264"),
    "mpeg4, avi": Codec("avi", "mpeg4", (("g", "10"), ("bf", "2"))),
    "vp8, webm": Codec(
        "webm", "libvpx", (("g", "12"), ("cpu-used", "8"), ("deadline", "realtime"))
    ),
}
# Without times in its packets, an AVI is decoded from its start.
SEEKABLE = [name for name in CODECS if "avi" not in name]


@pytest.fixture(scope="module")
def videos():
    return {name: encode(moving_frames(45), codec) for name, codec in CODECS.items()}


@pytest.mark.parametrize("name", CODECS)
def test_clips_equal_a_decode_of_all_frames(videos, name):
    whole = np.stack(list(iterate_video(videos[name])))
    assert len(whole) == count_frames("videos", videos[name]) == 45
    for start, count, stride in (
        (0, 45, 1),
        (0, 1, 1),
        (13, 6, 4),
        (7, 3, 1),
        (30, 8, 2),
        (44, 1, 9),
    ):
        clip = decode_clip(videos[name], start, count, stride)
        assert np.array_equal(clip, whole[start::stride][:count]), (start, count, stride)


@pytest.mark.parametrize("name", SEEKABLE)
def test_every_single_frame_is_found_by_seeking(videos, name):
    whole = list(iterate_video(videos[name]))
    for number, frame in enumerate(whole):
        (found,) = _seek_clip(videos[name], range(number, number + 1))
        assert np.array_equal(found, frame), number


def test_frames_look_like_what_was_encoded(videos):
    whole = np.stack(list(iterate_video(videos["h264, one GOP"]))).astype(int)
    assert np.median(np.abs(whole - moving_frames(45))) < 8


def test_a_memoryview_decodes_like_bytes(videos):
    payload = videos["h264, short GOPs"]
    assert np.array_equal(decode_clip(memoryview(payload), 5, 3, 2), decode_clip(payload, 5, 3, 2))


def test_frames_beyond_the_end_are_refused(videos):
    with pytest.raises(UndecodableError, match="5 of the 6 frames from 40"):
        decode_clip(videos["h264, short GOPs"], 40, 6, 1)


def test_a_file_without_video_is_refused():
    file = io.BytesIO()
    with av.open(file, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(UndecodableError, match="without a video stream"):
        count_frames("videos", file.getvalue())


@pytest.mark.parametrize("payload", [b"", b"nonsense" * 100])
@pytest.mark.parametrize("kind", ["images", "videos"])
def test_nonsense_is_refused(kind, payload):
    with pytest.raises(UndecodableError):
        count_frames(kind, payload)


@pytest.mark.parametrize("kind", ["images", "videos"])
def test_damaged_files_raise_nothing_but_undecodable(kind):
    whole = png(random_picture(0)) if kind == "images" else encode_h264(moving_frames(4), fps=9)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 8):
            damaged[place] = rng.integers(256)
        try:
            count_frames(kind, bytes(damaged))
        except UndecodableError:
            refused += 1
    assert refused > 0


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
