from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toto.data.clip_files import kind_of_file, read_picture_file, read_video_file
from toto.data.config import ClipConfig
from toto.data.decode import iterate_video
from toto.data.encode import encode_h264
from toto.errors import DataError


def wide_frames(count: int) -> np.ndarray:
    """Frames THWC of 32 × 48 px, each of its own grey, with other borders left and right."""
    frames = np.empty((count, 32, 48, 3), np.uint8)
    for index in range(count):
        frames[index] = 20 * index
    frames[:, :, :8], frames[:, :, -8:] = 255, 0
    return frames


def test_a_video_gives_the_centres_of_every_stride_th_frame(tmp_path):
    path = tmp_path / "a.MP4"
    path.write_bytes(encode_h264(wide_frames(8), fps=5))
    assert kind_of_file(path) == "videos"
    decoded = np.stack(list(iterate_video(path.read_bytes())))
    frames = read_video_file(path, ClipConfig(frames=2, stride=3, resolution=32))
    assert np.array_equal(frames, decoded[[0, 3], :, 8:40])
    frames = read_video_file(path, ClipConfig(frames=9, stride=3, resolution=32))
    assert np.array_equal(frames, decoded[[0, 3, 6], :, 8:40]), "a shorter video gives what it has"
    assert read_video_file(path, ClipConfig(frames=1, resolution=16)).shape == (1, 16, 16, 3)


def test_a_picture_gives_one_frame(tmp_path):
    path = tmp_path / "a.png"
    picture = wide_frames(2)[1]
    Image.fromarray(picture).save(path)
    assert kind_of_file(path) == "images"
    assert np.array_equal(read_picture_file(path, 32), picture[None, :, 8:40])


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    for read in (lambda path: read_picture_file(path, 8), lambda path: read_video_file(path, CLIP)):
        with pytest.raises(DataError, match=r"a\.x: Permission denied\. Mend its permissions"):
            read(Path("a.x"))


def test_a_video_without_frames_is_named(tmp_path):
    path = tmp_path / "cut.mp4"
    path.write_bytes(encode_h264(wide_frames(4), fps=5)[:400])
    with pytest.raises(DataError, match=r"cut\.mp4: .*Copy or convert the file again"):
        read_video_file(path, CLIP)


CLIP = ClipConfig(frames=2, stride=1, resolution=32)
