"""Frames to squares of the size that the tokenizer takes.

The paper resizes the short side to R and crops R × R (§3.4). Here the square is cut first, at a
whole pixel of the original, and then resized: the same picture but for its border, and the part
that is cut away is never resized.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

if TYPE_CHECKING:
    from toto.data.decode import Cut, Frames

__all__ = ["square", "square_cut", "square_plainly", "squeeze"]


def square(frames_THWC: Frames, resolution: int, *, crop_y: float, crop_x: float) -> Frames:
    """Crop the largest square, the same of every frame, and resize it (bicubic, antialiased).

    Args:
        frames_THWC: uint8 RGB frames of any size.
        resolution: side of the result in pixels; frames of that size come back unchanged.
        crop_y: where the square lies, from 0 (top) to below 1 (bottom), each pixel as likely.
        crop_x: likewise, from the left.

    Returns:
        uint8 `[T, resolution, resolution, 3]`.
    """
    return squeeze(_crop(frames_THWC, crop_y, crop_x), resolution)


def square_cut(resolution: int, *, crop_y: float, crop_x: float) -> Cut:
    """Return `square` with its place and resolution, for decoders; see there."""
    return partial(square, resolution=resolution, crop_y=crop_y, crop_x=crop_x)


def squeeze(frames_THWC: Frames, resolution: int) -> Frames:
    """Resize the whole of each frame to a square, whatever its sides (bicubic, antialiased).

    Args:
        frames_THWC: uint8 RGB frames of any size.
        resolution: side of the result in pixels; frames of that size come back unchanged.

    Returns:
        uint8 `[T, resolution, resolution, 3]`.
    """
    if frames_THWC.shape[1:3] == (resolution, resolution):
        return frames_THWC
    # torch's kernels for bytes are Pillow's algorithm with vector instructions: one pass over the
    # clip, five times as fast.
    frames_TCHW = torch.from_numpy(np.array(frames_THWC)).permute(0, 3, 1, 2)
    resized_TCRR = functional.interpolate(
        frames_TCHW, size=(resolution, resolution), mode="bicubic", antialias=True
    )
    return np.ascontiguousarray(resized_TCRR.permute(0, 2, 3, 1).numpy())


def square_plainly(frames_THWC: Frames, resolution: int, *, crop_y: float, crop_x: float) -> Frames:
    """What `square` returns, resized by Pillow; a value may differ by 2 of 255."""
    images = [Image.fromarray(frame) for frame in _crop(frames_THWC, crop_y, crop_x)]
    size = (resolution, resolution)
    return np.stack([np.asarray(i.resize(size, Image.Resampling.BICUBIC)) for i in images])


def _crop(frames_THWC: Frames, crop_y: float, crop_x: float) -> Frames:
    height, width = frames_THWC.shape[1:3]
    side = min(height, width)
    top = int(crop_y * (height - side + 1))
    left = int(crop_x * (width - side + 1))
    return frames_THWC[:, top : top + side, left : left + side]
