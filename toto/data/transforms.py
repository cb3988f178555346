"""Frames to squares of the size that the tokenizer takes.

The paper resizes the short side to R and crops R × R (§3.4). Here the square is cut first, at a
whole pixel of the original, and then resized: the same picture but for its border, and the part
that is cut away is never resized.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from toto.data.decode import Frames

__all__ = ["CENTRE", "square"]

CENTRE = 0.5


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
    height, width = frames_THWC.shape[1:3]
    side = min(height, width)
    top = int(crop_y * (height - side + 1))
    left = int(crop_x * (width - side + 1))
    cropped = frames_THWC[:, top : top + side, left : left + side]
    if side == resolution:
        return cropped
    return np.stack([_resize(frame, resolution) for frame in cropped])


def _resize(frame_HWC: Frames, resolution: int) -> Frames:
    image = Image.fromarray(frame_HWC)
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.BICUBIC))
