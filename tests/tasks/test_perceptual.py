"""The perceptual distance compares directions of features: each position has unit length."""

from __future__ import annotations

import pytest
import torch

from toto.tasks.perceptual import FeatureNetwork, perceptual_distance


class Pixels(FeatureNetwork):
    """The pixels themselves as the only map, and once more at half of their side."""

    def forward(self, pixels_BCHW):
        return [pixels_BCHW, pixels_BCHW[:, :, ::2, ::2]]


def image(*columns):
    """Two images of 2 × 2 pixels, every pixel as given."""
    return torch.tensor(columns)[:, :, None, None].expand(-1, -1, 2, 2)


def test_the_length_of_features_does_not_count():
    """Zhang et al. 2018, equation 1: normalised in the channel dimension, position by position."""
    image_BCHW = torch.rand(2, 3, 4, 4) + 0.1
    longer_BCHW = image_BCHW * (1 + 9 * torch.rand(2, 1, 4, 4))
    distance_B = perceptual_distance(Pixels(), image_BCHW, longer_BCHW)
    torch.testing.assert_close(distance_B, torch.zeros(2), atol=1e-6, rtol=0)


def test_the_distance_is_the_squared_chord_summed_over_maps():
    first = image((5.0, 0.0, 0.0), (3.0, 4.0, 0.0))
    second = image((0.0, 0.1, 0.0), (4.0, 3.0, 0.0))
    # Right angle: |u - v|² = 2; cosine 24/25: 2 - 2 · 24/25. Two maps with the same pixels.
    assert perceptual_distance(Pixels(), first, second).tolist() == pytest.approx([4, 0.16], 1e-4)
