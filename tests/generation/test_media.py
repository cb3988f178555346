from __future__ import annotations

from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
from PIL import Image

from toto.generation import media

if TYPE_CHECKING:
    from pathlib import Path

FRAMED = np.array(media.FRAME, dtype=np.uint8)


def clip(frames: int, side: int = 16) -> media.Pixels:
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (frames, side, side, 3), dtype=np.uint8)


def test_png_holds_the_pixels(tmp_path: Path) -> None:
    image_HWC = clip(1)[0]
    media.write_png(tmp_path / "a.png", image_HWC)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), image_HWC)


def test_gif_holds_every_frame_and_repeats(tmp_path: Path) -> None:
    media.write_gif(tmp_path / "a.gif", clip(5), frame_seconds=0.2)
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.size, image.n_frames) == ((16, 16), 5)
        assert image.info["loop"] == 0
        assert image.info["duration"] == 200


def test_gif_keeps_few_colours_exactly(tmp_path: Path) -> None:
    frames_THWC = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    for index in range(3):
        frames_THWC[index, index] = (250, 10 * index, 77)
    media.write_gif(tmp_path / "a.gif", frames_THWC)
    with Image.open(tmp_path / "a.gif") as image:
        for index, frame_HWC in enumerate(frames_THWC):
            image.seek(index)
            assert np.array_equal(np.asarray(image.convert("RGB")), frame_HWC)


def test_mp4_holds_every_frame_near_its_pixels(tmp_path: Path) -> None:
    frames_THWC = np.full((6, 32, 48, 3), 30, dtype=np.uint8)
    for index in range(6):
        frames_THWC[index, :, 8 * index : 8 * index + 8] = 220
    media.write_mp4(tmp_path / "a.mp4", frames_THWC, frame_seconds=0.25)
    with av.open(str(tmp_path / "a.mp4")) as container:
        rate = container.streams.video[0].average_rate
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert rate == 4
    assert np.stack(decoded).shape == frames_THWC.shape
    assert np.abs(np.stack(decoded).astype(int) - frames_THWC).mean() < 6


def test_mp4_refuses_odd_sizes_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="31 × 32 px: both must be even"):
        media.write_mp4(tmp_path / "a.mp4", np.zeros((2, 32, 31, 3), dtype=np.uint8))
    assert not list(tmp_path.iterdir())


def test_side_by_side_shows_both_enlarged_and_frames_the_prompt() -> None:
    real_THWC, generated_THWC = clip(4), clip(6)[::-1]
    columns = {"real": real_THWC, "generated": generated_THWC}
    frames_THWC = media.side_by_side(columns, prompt_frames=2, scale=3)
    assert len(frames_THWC) == 6
    assert frames_THWC.shape[1] % 2 == 0
    assert frames_THWC.shape[2] % 2 == 0
    side, left, second = 48, media.GAP, 2 * media.GAP + 48
    below = slice(media.STRIP, media.STRIP + side)
    for index in range(4):
        shown = frames_THWC[index, below, left : left + side]
        assert np.array_equal(shown[1::3, 1::3], real_THWC[index])
    for index in range(6):
        shown = frames_THWC[index, below, second : second + side]
        assert np.array_equal(shown[::3, ::3], generated_THWC[index])
        assert (frames_THWC[index, media.STRIP + 10, second - 2] == FRAMED).all() == (index < 2)
    assert (frames_THWC[5, below, left : left + side] == media.BACKGROUND).all()


def test_an_animation_of_one_sequence_is_as_wide_as_its_frames() -> None:
    generated_THWC = clip(3)
    frames_THWC = media.side_by_side({"generated": generated_THWC}, prompt_frames=0, scale=8)
    assert frames_THWC.shape[2] == 16 * 8 + 2 * media.GAP
    for index in range(3):
        shown = frames_THWC[index, media.STRIP : media.STRIP + 128, media.GAP : media.GAP + 128]
        assert np.array_equal(shown[::8, ::8], generated_THWC[index])
    assert not (frames_THWC == FRAMED).all(-1).any()


def test_sheet_wraps_and_frames_the_first() -> None:
    top_THWC, bottom_THWC = clip(5), clip(5)[::-1]
    image_HWC = media.sheet(
        {"a": top_THWC, "b": bottom_THWC}, list("12345"), columns=3, scale=2, framed=1
    )
    step = 32 + media.GAP
    band = media.STRIP + 2 * step
    assert image_HWC.shape[0] == 2 * band + media.GAP
    gutter = image_HWC.shape[1] - 3 * step
    for index in range(5):
        top = (index // 3) * band + media.STRIP
        left = gutter + (index % 3) * step
        for row, frames_THWC in enumerate((top_THWC, bottom_THWC)):
            y = top + row * step
            shown = image_HWC[y : y + 32, left : left + 32]
            assert np.array_equal(shown[::2, ::2], frames_THWC[index])
            assert (image_HWC[y + 5, left - 1] == FRAMED).all() == (index == 0)


def test_continuation_sheet_has_a_column_for_each_frame_of_the_longest_row() -> None:
    def width(real: int, generated: int) -> int:
        rows = {"real": clip(real), "generated": clip(generated)}
        return media.continuation_sheet(rows, prompt_frames=2).shape[1]

    assert width(3, 4) - width(3, 3) == 16 + media.GAP
    assert width(4, 3) == width(3, 4)


@pytest.mark.parametrize(("side", "scale"), [(64, 2), (128, 1), (256, 1), (32, 4)])
def test_small_frames_are_enlarged(side: int, scale: int) -> None:
    assert media.pixel_scale(side) == scale


def test_objects_are_tinted_and_the_background_is_not() -> None:
    frames_THWC = clip(2)
    ids_THW = np.zeros(frames_THWC.shape[:3], np.uint8)
    ids_THW[1, 4:8] = 2
    palette = np.array([[0, 0, 0], [9, 9, 9], [200, 0, 100]], np.uint8)
    found = media.tinted(frames_THWC, ids_THW, palette)
    assert np.array_equal(found[ids_THW == 0], frames_THWC[ids_THW == 0])
    assert np.array_equal(found[1, 5, 5], frames_THWC[1, 5, 5] // 2 + np.array([100, 0, 50]))
    assert found.dtype == np.uint8
