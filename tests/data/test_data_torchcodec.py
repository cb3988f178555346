import sys

import numpy as np
import pytest
from test_data_video_file import MATRICES, VIDEOS, encode_with_cover, scripts, with_matrix
from toy_data import Codec, encode, moving_frames, video_dataset

from toto.data.config import ClipConfig
from toto.data.decode import UndecodableError, clip_decoder, decode_clip, iterate_video
from toto.data.index import Dataset
from toto.data.stream import Stream, StreamSource
from toto.data.video_torchcodec import decode_clip_by_torchcodec, require_torchcodec
from toto.errors import UserError

CODECS = {
    "h264": Codec("mp4", "libx264", (("g", "7"), ("bf", "3"))),
    "h264, 4:4:4, full range": Codec(
        "mp4", "libx264", (("g", "12"), ("color_range", "pc"), ("colorspace", "bt709")), "yuv444p"
    ),
    "h264, matroska": Codec("matroska", "libx264", (("g", "9"),)),
    "vp8, webm": Codec("webm", "libvpx", (("g", "12"), ("deadline", "realtime"))),
}


@pytest.fixture
def torchcodec():
    try:
        require_torchcodec()
    except UserError as error:
        pytest.skip(str(error))
    return clip_decoder("torchcodec")


@pytest.mark.parametrize("name", CODECS)
def test_torchcodec_gives_the_same_frames(torchcodec, name):
    video = encode(moving_frames(40, 64, 96), CODECS[name])
    for start, count, stride in ((0, 40, 1), (13, 6, 4), (39, 1, 3)):
        ours = decode_clip(video, start, count, stride, total=40).astype(int)
        off = np.abs(torchcodec(memoryview(video), start, count, stride, total=40) - ours)
        assert off.max() <= 3
        assert off.mean() < 0.5


@pytest.mark.parametrize("name", CODECS)
def test_torchcodec_refuses_broken_videos(torchcodec, name):
    video = encode(moving_frames(40, 64, 96), CODECS[name])
    rng = np.random.default_rng(0)
    refused = 0
    for seed in range(100):
        broken = bytearray(video[: None if seed % 3 else rng.integers(1, len(video))])
        for place in rng.integers(0, len(broken), 20):
            broken[place] = rng.integers(256)
        try:
            torchcodec(bytes(broken), 20, 4, 4, total=40)
        except UndecodableError:
            refused += 1
    assert refused > 0
    with pytest.raises(UndecodableError):
        torchcodec(video, 38, 3, 4, total=40)


@pytest.mark.parametrize("name", VIDEOS)
def test_torchcodec_numbers_frames_as_a_whole_decode_does(torchcodec, name):
    video = VIDEOS[name]()
    whole = np.stack(list(iterate_video(video))).astype(int)
    for start in range(len(whole)):
        (frame,) = torchcodec(video, start, 1, 1, total=len(whole), orientation="upright")
        assert np.abs(frame - whole[start]).max() <= 3, start


@pytest.mark.parametrize("orientation", ["upright", "stored"])
@pytest.mark.parametrize("name", MATRICES)
def test_torchcodec_gives_the_orientation_that_is_asked_for(torchcodec, name, orientation):
    matrix, _ = MATRICES[name]
    video = with_matrix(encode(moving_frames(9), Codec("mp4", "libx264")), *matrix)
    ours = decode_clip(video, 1, 3, 3, total=9, orientation=orientation)
    theirs = torchcodec(video, 1, 3, 3, total=9, orientation=orientation)
    assert np.abs(theirs.astype(int) - ours).max() <= 3


@pytest.mark.parametrize("flagged", [True, False])
def test_torchcodec_takes_no_cover_for_the_video(torchcodec, flagged):
    video = encode_with_cover("mp4", flagged=flagged)
    assert torchcodec(video, 2, 2, 3, total=9, orientation="upright").shape == (2, 32, 48, 3)


@pytest.mark.parametrize("name", scripts(0))
def test_torchcodec_never_sees_a_file_that_names_others(monkeypatch, name):
    def open_nothing(*args, **kwargs):
        raise AssertionError("it was given to torchcodec")

    monkeypatch.setattr("toto.data.video_torchcodec.require_torchcodec", lambda: open_nothing)
    payload = scripts(9)[name].encode()
    with pytest.raises(UndecodableError, match=f"{name}.*refused"):
        decode_clip_by_torchcodec(payload, 0, 1, 1, total=3)


def test_without_torchcodec_the_stream_says_how_to_mend_it(tmp_path, monkeypatch):
    video_dataset(tmp_path / "d", [9])
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    sources = [StreamSource("v", Dataset.open(tmp_path / "d"), decoder="torchcodec")]
    with pytest.raises(UserError, match=r"pip install torchcodec.*data.decoder to pyav"):
        Stream(sources, ClipConfig(frames=2, stride=2, resolution=8), 0)


def test_a_stream_of_torchcodec_holds_the_sequences_of_pyav(torchcodec, tmp_path):
    dataset = video_dataset(tmp_path / "d", [30, 40])
    clip = ClipConfig(frames=4, stride=2, resolution=16)
    ours, theirs = (
        Stream([StreamSource("v", dataset, decoder=decoder)], clip, 0).sequences(range(6))
        for decoder in ("pyav", "torchcodec")
    )
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a.frames.astype(int) - b.frames).max() <= 3
