import numpy as np
import pytest
from toy_data import moving_frames, random_picture

from toto.data.order import CENTRE
from toto.data.transforms import square, square_plainly, squeeze


def test_frames_of_the_right_size_are_unchanged():
    frames = moving_frames(3, 16, 16)
    for crop in (0.0, 0.37, 0.999):
        assert np.array_equal(square(frames, 16, crop_y=crop, crop_x=crop), frames)


def test_a_crop_without_resizing_is_exact_and_the_same_for_all_frames():
    frames = moving_frames(4, 16, 40)
    cut = square(frames, 16, crop_y=0.9, crop_x=0.5)
    assert np.array_equal(cut, frames[:, :, 12:28])


@pytest.mark.parametrize(("crop", "left"), [(0.0, 0), (CENTRE, 4), (0.999999, 8)])
def test_the_crop_reaches_from_edge_to_edge(crop, left):
    frames = random_picture(0, 18, 10)[None]
    assert np.array_equal(square(frames, 10, crop_y=crop, crop_x=0.3), frames[:, left : left + 10])


def test_every_pixel_position_is_as_likely():
    frames = np.arange(12, dtype=np.uint8)[None, None, :, None].repeat(8, 1).repeat(3, 3)
    lefts = [square(frames, 8, crop_y=0, crop_x=i / 1000)[0, 0, 0, 0] for i in range(1000)]
    assert np.bincount(lefts).tolist() == [200] * 5


def test_resizing_keeps_a_flat_picture_and_its_mean():
    flat = np.full((1, 50, 70, 3), 93, np.uint8)
    assert (square(flat, 16, crop_y=0.2, crop_x=0.2) == 93).all()
    noise = random_picture(1, 128, 128)[None]
    assert abs(square(noise, 32, crop_y=0, crop_x=0).mean() - noise.mean()) < 1


def test_resizing_down_is_antialiased():
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    assert np.ptp(square(stripes, 16, crop_y=0, crop_x=0)[:, :, 2:-2]) < 20


@pytest.mark.parametrize(
    ("size", "resolution"),
    [((256, 340), 128), ((375, 500), 128), ((37, 53), 24), ((48, 48), 47), ((20, 31), 64),
     ((1500, 1100), 32)],
)  # fmt: skip
def test_resizing_equals_pillow(size, resolution):
    for frames in (moving_frames(3, *size), random_picture(5, *size)[None]):
        ours = square(frames, resolution, crop_y=0.6, crop_x=0.2).astype(int)
        off = np.abs(ours - square_plainly(frames, resolution, crop_y=0.6, crop_x=0.2))
        assert off.max() <= 2
        assert off.mean() < 0.05


def test_read_only_frames_are_resized_too():
    frames = random_picture(2, 30, 30)[None]
    frames.setflags(write=False)
    assert square(frames, 8, crop_y=0, crop_x=0).shape == (1, 8, 8, 3)


def test_squeezing_keeps_the_whole_frame():
    frames = np.zeros((1, 20, 60, 3), np.uint8)
    frames[:, :, 30:] = 200
    found = squeeze(frames, 20)
    assert found.shape == (1, 20, 20, 3)
    assert (found[0, :, :8] < 10).all()
    assert (found[0, :, 12:] > 190).all()
    assert squeeze(found, 20) is found
