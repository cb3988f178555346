"""A distance of pictures in the features of a network that somebody chose.

As LPIPS without its learned weights (Zhang et al. 2018, arXiv 1801.03924): features are scaled to
unit length over their channels. Which network, the recipe says; toto's own knows no labels.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from toto.registry import Implementation
from toto.tokenizers.dvae import Dvae, map_pixels

if TYPE_CHECKING:
    from toto.tokenizers.config import DvaeConfig

__all__ = ["DvaeFeatures", "FeatureNetwork", "perceptual_distance"]

LENGTH_EPS = 1e-10


class FeatureNetwork(nn.Module, Implementation):
    """Pictures to feature maps. Frozen; gradients pass through it to the pictures."""

    @abstractmethod
    def forward(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """Pictures in [0, 1] → feature maps `BCHW`, each of its own size."""


class DvaeFeatures(FeatureNetwork):
    """What stands after each group of a dVAE's encoder, before the pooling."""

    def __init__(self, config: DvaeConfig) -> None:
        super().__init__()
        dvae = config.build()
        assert isinstance(dvae, Dvae)
        *blocks, _logits = dvae.encoder.blocks
        self.blocks = nn.ModuleList(blocks)

    def forward(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """See `FeatureNetwork.forward`."""
        maps = []
        x_BCHW = self.blocks[0](map_pixels(pixels_BCHW))
        for group in self.blocks[1:]:
            assert isinstance(group, nn.Sequential)
            for name, module in group.named_children():
                if name == "pool":
                    maps.append(x_BCHW)
                x_BCHW = module(x_BCHW)
        return [*maps, x_BCHW]


def perceptual_distance(network: FeatureNetwork, first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """Squared distance of unit-length features, mean over positions, sum over maps: `B`."""
    maps = zip(network(first_BCHW), network(second_BCHW), strict=True)
    return torch.stack([_distance(first, second) for first, second in maps]).sum(0)


def _distance(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    difference = _unit(first_BCHW.float()) - _unit(second_BCHW.float())
    return difference.square().sum(dim=1).mean(dim=(1, 2))


def _unit(x_BCHW: Tensor) -> Tensor:
    length_B1HW = x_BCHW.square().sum(dim=1, keepdim=True).add(LENGTH_EPS).sqrt()
    return x_BCHW / length_B1HW
