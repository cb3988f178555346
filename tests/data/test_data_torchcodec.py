import sys

import numpy as np
import pytest
from toy_data import Codec, encode, moving_frames, video_dataset

from toto.data.config import ClipConfig
from toto.data.decode import UndecodableError, clip_decoder, decode_clip
from toto.data.index import Dataset
from toto.data.stream import Stream, StreamSource
from toto.data.video_torchcodec import require_torchcodec
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
