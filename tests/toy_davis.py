"""A folder in the layout of DAVIS: two videos of squares that move, with their masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from toto.data.davis import ANNOTATIONS, NAMES, PICTURES, write_mask

HEIGHT, WIDTH, FRAMES, SIDE = 48, 80, 5, 24
OBJECTS = {"one": 1, "two": 2}


def make_davis(root: Path, frames: int = FRAMES) -> Path:
    """Sequence `one` has an object, `two` has two, of a pattern each; their last corner is void."""
    (root / NAMES).parent.mkdir(parents=True)
    (root / NAMES).write_text("\n".join(OBJECTS) + "\n")
    rng = np.random.default_rng(0)
    for name, objects in OBJECTS.items():
        background = rng.integers(0, 120, (HEIGHT, WIDTH, 3))
        patterns = rng.integers(60, 256, (objects, SIDE, SIDE, 3))
        (root / PICTURES / name).mkdir(parents=True)
        for t in range(frames):
            frame, ids_HW = background.astype(np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
            for number in range(1, objects + 1):
                place = slice(24 * number - 24, 24 * number), slice(8 + 8 * t, 8 + 8 * t + SIDE)
                frame[place] = patterns[number - 1]
                ids_HW[place] = number
            ids_HW[-1, -1] = 255
            Image.fromarray(frame).save(root / PICTURES / name / f"{t:05d}.jpg", quality=95)
            write_mask(root / ANNOTATIONS / name / f"{t:05d}.png", ids_HW)
    return root
