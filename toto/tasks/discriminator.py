"""The patch discriminator of VQGAN (Isola et al. 2017, arXiv 1611.07004; taming-transformers)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["PatchDiscriminator", "hinge_loss"]

INIT_STD = 0.02
MAX_WIDTH_FACTOR = 8


class PatchDiscriminator(nn.Module):
    """Says of each patch of a picture how real it looks: a logit, high for real.

    4×4 convolutions: `num_layers` that halve the resolution, one that keeps it, and the readout;
    BatchNorm (always over the pictures at hand, as in training) and leaky ReLU between.

    Args:
        width: channels after the first convolution; twice as many after each, up to 8 times.
        num_layers: halvings of the resolution.
    """

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        widths = [width * min(2**i, MAX_WIDTH_FACTOR) for i in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i, (n_in, n_out) in enumerate(pairwise(widths)):
            stride = 2 if i < num_layers - 1 else 1
            layers += [
                nn.Conv2d(n_in, n_out, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(n_out, track_running_stats=False),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1))
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=INIT_STD)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, mean=1.0, std=INIT_STD)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Pictures in [0, 1] → a logit for each patch, `B1HW`."""
        logits_BCHW: Tensor = self.layers(2 * pixels_BCHW - 1)
        return logits_BCHW


def hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Of the discriminator: real patches should exceed 1, decoded ones lie below -1."""
    real, fake = torch.relu(1 - real_logits).mean(), torch.relu(1 + fake_logits).mean()
    return (real + fake) / 2
