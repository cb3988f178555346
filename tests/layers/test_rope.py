from __future__ import annotations

import math

import pytest
import torch

from toto.layers.rope import apply_rope, rope_rotation

CPU = torch.device("cpu")


def test_pair_i_turns_by_position_times_its_frequency():
    length, head_dim, base = 5, 6, 100.0
    rotation = rope_rotation(length, head_dim, base, CPU)
    x = torch.randn(1, length, 1, head_dim)
    turned = apply_rope(x, rotation)
    for position in range(length):
        for pair in range(head_dim // 2):
            angle = position * base ** (-2 * pair / head_dim)
            before = complex(x[0, position, 0, pair], x[0, position, 0, pair + head_dim // 2])
            after = before * complex(math.cos(angle), math.sin(angle))
            found = turned[0, position, 0, [pair, pair + head_dim // 2]]
            torch.testing.assert_close(found, torch.tensor([after.real, after.imag]))


def test_scores_depend_on_distance_alone():
    rotation = rope_rotation(64, 8, 10_000.0, CPU)
    query = apply_rope(torch.randn(8).expand(1, 64, 1, 8), rotation)[0, :, 0]
    key = apply_rope(torch.randn(8).expand(1, 64, 1, 8), rotation)[0, :, 0]
    scores = query @ key.T
    for distance in (0, 1, 30):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_angles_stay_exact_far_out_under_autocast(dtype):
    with torch.autocast("cpu", torch.bfloat16):
        rotation = rope_rotation(4097, 64, 10_000.0, CPU)
    assert rotation.cos_LP.dtype == torch.float32
    exponents = torch.arange(0, 64, 2, dtype=torch.float64) / 64
    angles = 4096 * 10_000.0**-exponents
    torch.testing.assert_close(rotation.cos_LP[4096].double(), angles.cos(), atol=1e-3, rtol=0)
    x = torch.randn(1, 4097, 2, 64, dtype=dtype)
    assert apply_rope(x, rotation).dtype == dtype
