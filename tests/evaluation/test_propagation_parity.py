"""Propagation against what the published scripts give for the same features and first mask.

The functions of the two scripts were run once, as published and unchanged, on the CPU in float64
(`.cuda()` made to do nothing, features as below instead of those of a network):

- facebookresearch/dino at 7c446df5b9f45747937fb0d72314eb9f7b66930a, eval_video_segmentation.py:
  `restrict_neighborhood`, `label_propagation`, `to_one_hot`, and the queue of
  `eval_video_tracking_davis`, with n_last_frames 2, topk 4, size_mask_neighborhood 3;
- ajabri/videowalk at 047f3f40135a4b1be2f837793b89c3dbfe7a6683, code/utils/test_utils.py:
  `context_index_bank`, `mem_efficient_batched_affinity`; code/utils/__init__.py: `MaskedAttention`;
  and the loop of code/test.py, with videoLen 2, topk 4, radius 3, temperature 0.05.

PUBLISHED holds the labels that they gave to the fifth frame, to four digits. Ours differed from
them by less than 2e-15.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from toto.evaluation.propagation import (
    PRESETS,
    LabelTrack,
    labels_of,
    tiles,
)

GRID, WIDTH, FRAMES = (6, 9), 5, 5
# Of each preset the labels `HW` of objects 1 and 2; the background has the rest.
PUBLISHED = {
    "crw": [
        [
            [0.9134, 0.3806, 0.0000, 0.0000, 0.0027, 0.0016, 0.3094, 0.0000, 0.4775],
            [0.0000, 0.6273, 0.0000, 0.8105, 0.0000, 0.4865, 0.0018, 0.1281, 0.0006],
            [0.0000, 0.9279, 0.7170, 0.9756, 0.9704, 0.1688, 0.0000, 0.0000, 0.1998],
            [0.0000, 0.4426, 0.0000, 0.3170, 0.0655, 0.6895, 0.0765, 0.0000, 0.0031],
            [0.0000, 0.3356, 0.2232, 0.4571, 0.0468, 0.0080, 0.0000, 0.3441, 0.0000],
            [0.3589, 0.0000, 0.3773, 0.9354, 0.3628, 0.2654, 0.0000, 0.0000, 0.5068],
        ],
        [
            [0.0077, 0.5205, 0.1087, 0.2735, 0.0000, 0.0000, 0.2839, 0.2540, 0.3263],
            [0.6778, 0.0112, 0.3309, 0.0032, 0.0000, 0.0000, 0.2504, 0.4246, 0.0000],
            [0.3682, 0.0086, 0.0068, 0.0000, 0.0001, 0.0000, 0.0516, 0.3078, 0.0195],
            [0.0032, 0.0000, 0.7033, 0.0032, 0.0015, 0.0000, 0.3297, 0.4418, 0.0253],
            [0.1092, 0.2353, 0.1551, 0.0199, 0.0000, 0.0000, 0.2922, 0.0170, 0.0015],
            [0.0000, 0.8911, 0.0024, 0.0000, 0.1699, 0.3866, 0.0718, 0.3077, 0.2837],
        ],
    ],
    "dino": [
        [
            [0.8007, 0.5431, 0.0915, 0.0103, 0.0184, 0.0354, 0.0257, 0.0000, 0.0363],
            [0.0603, 0.8764, 0.0000, 0.6154, 0.0000, 0.3491, 0.1859, 0.0907, 0.0165],
            [0.0000, 0.8697, 0.8001, 0.7731, 0.9037, 0.2235, 0.0654, 0.0000, 0.0846],
            [0.0000, 0.7076, 0.0273, 0.5687, 0.1000, 0.6445, 0.1141, 0.0000, 0.0157],
            [0.2344, 0.4811, 0.2294, 0.5007, 0.1012, 0.1673, 0.0000, 0.0964, 0.0003],
            [0.6196, 0.0007, 0.4505, 0.7619, 0.4688, 0.0217, 0.0385, 0.0112, 0.2559],
        ],
        [
            [0.0242, 0.2534, 0.3786, 0.1189, 0.0757, 0.1228, 0.3938, 0.3162, 0.4284],
            [0.3187, 0.0490, 0.1577, 0.0380, 0.1653, 0.0516, 0.0475, 0.3778, 0.2097],
            [0.0901, 0.0279, 0.0574, 0.0172, 0.0092, 0.0000, 0.0719, 0.3626, 0.1582],
            [0.0357, 0.0298, 0.5792, 0.0111, 0.0000, 0.0389, 0.1755, 0.1499, 0.1363],
            [0.0670, 0.0468, 0.0065, 0.0081, 0.0000, 0.0031, 0.4571, 0.1562, 0.2308],
            [0.0227, 0.7890, 0.0150, 0.0115, 0.0058, 0.3460, 0.0625, 0.8206, 0.4209],
        ],
    ],
}


def features(frame: int) -> torch.Tensor:
    """Features `HWD` of a formula, so that they are the same everywhere."""
    i = np.arange(GRID[0] * GRID[1] * WIDTH, dtype=np.float64).reshape(*GRID, WIDTH)
    return torch.from_numpy(np.sin(1.7 * i * i + 3.1 * frame * i + frame))


def first_mask() -> torch.Tensor:
    """Two objects that overlap, 8 pixels a token."""
    ids_HW = torch.zeros(GRID[0] * 8, GRID[1] * 8, dtype=torch.uint8)
    ids_HW[5:30, 9:41] = 1
    ids_HW[22:44, 33:66] = 2
    return ids_HW


@pytest.mark.parametrize("name", PUBLISHED)
def test_five_frames_give_the_labels_of_the_published_script(name):
    preset = dataclasses.replace(PRESETS[name], frames=2, top_k=4, radius=3)
    labels_HWC = labels_of(first_mask(), 2, GRID, preset).double()
    shared = tiles(*GRID, preset, torch.device("cpu"))
    track = LabelTrack(features(0), labels_HWC, preset, shared)
    for frame in range(1, FRAMES):
        found_HWC = track.follow(features(frame))
    want_2HW = torch.tensor(PUBLISHED[name], dtype=torch.float64)
    torch.testing.assert_close(found_HWC[..., 1:].permute(2, 0, 1), want_2HW, atol=6e-5, rtol=0)
    torch.testing.assert_close(found_HWC.sum(-1), torch.ones(GRID, dtype=torch.float64))
