"""Patches of pixels: what a model takes in, and the normalised targets that it regresses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toto.tokenizers.base import PatchGrid, TokenGrid, Tokenizer, full_precision

if TYPE_CHECKING:
    from toto.tokenizers.config import PatchConfig

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "PatchTokenizer"]

# Of R, G and B in [0, 1]; the inputs of MAE (facebookresearch/mae) and AIM (apple/ml-aim).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# He et al. 2022: facebookresearch/mae, models_mae.py, forward_loss.
VARIANCE_EPS = 1e-6


class PatchTokenizer(Tokenizer):
    """Cuts images into p × p patches, each ordered (row, column, channel). Nothing is learned.

    Inputs and targets differ, as in MAE and AIM: inputs are pixels, normalised by constants or by
    the image, so that a model sees brightness, contrast and colour; targets are those pixels
    normalised by the mean and the unbiased variance of each patch's p·p·3 values.
    """

    config: PatchConfig
    channel_mean_C: Tensor
    channel_std_C: Tensor

    def __init__(self, config: PatchConfig) -> None:
        super().__init__(config)
        pixels = config.patch_size**2
        self.register_buffer(
            "channel_mean_C", torch.tensor(IMAGENET_MEAN).repeat(pixels), persistent=False
        )
        self.register_buffer(
            "channel_std_C", torch.tensor(IMAGENET_STD).repeat(pixels), persistent=False
        )

    def encode(self, pixels_BCHW: Tensor) -> PatchGrid:
        """Return the inputs `BHWC`, C = p·p·3, and what undoes their normalisation."""
        self.check_pixels(pixels_BCHW)
        p = self.config.patch_size
        with full_precision(pixels_BCHW.device):
            batch, _, height, width = pixels_BCHW.shape
            tiles = pixels_BCHW.reshape(batch, 3, height // p, p, width // p, p)
            patches_BHWC = tiles.permute(0, 2, 4, 3, 5, 1).flatten(3)
            mean, std = self._statistics(patches_BHWC)
            return PatchGrid((patches_BHWC - mean) / std, mean, std)

    def decode(self, grid: TokenGrid | PatchGrid) -> Tensor:
        """Return the images that `encode` cut up; predictions of a model are no such patches."""
        if not isinstance(grid, PatchGrid):
            raise TypeError(f"patch decodes a PatchGrid, not a {type(grid).__name__}")
        p = self.config.patch_size
        with full_precision(grid.patches_BHWC.device):
            patches_BHWC = grid.patches_BHWC.float() * grid.std + grid.mean
            batch, height, width, _ = patches_BHWC.shape
            tiles = patches_BHWC.reshape(batch, height, width, p, p, 3).permute(0, 5, 1, 3, 2, 4)
            return tiles.reshape(batch, 3, height * p, width * p).clamp(0, 1)

    def patch_targets(self, patches: Tensor) -> Tensor:
        """Return the inputs normalised patch by patch, as MAE's `norm_pix_loss` does."""
        if self.config.input_norm == "patch":
            return patches  # normalised already
        with full_precision(patches.device):
            mean, std = _mean_and_std(patches, dim=(-1,))
            return (patches - mean) / std

    def _statistics(self, patches_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        match self.config.input_norm:
            case "imagenet":
                return self.channel_mean_C, self.channel_std_C
            case "image":
                return _mean_and_std(patches_BHWC, dim=(1, 2, 3))
            case "patch":
                return _mean_and_std(patches_BHWC, dim=(3,))


def _mean_and_std(x: Tensor, dim: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, dim=dim, keepdim=True)
    return mean, (variance + VARIANCE_EPS).sqrt()
