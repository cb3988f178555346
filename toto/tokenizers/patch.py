"""Patches normalised by their own mean and deviation (He et al. 2022, arXiv 2111.06377)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toto.tokenizers.base import PatchGrid, TokenGrid, Tokenizer, full_precision

if TYPE_CHECKING:
    from toto.tokenizers.config import PatchConfig

__all__ = ["PatchTokenizer"]

VARIANCE_EPS = 1e-6


class PatchTokenizer(Tokenizer):
    """Cuts pictures into p × p patches, ordered (row, column, channel), and normalises each.

    MAE takes the mean and the unbiased variance over the p·p·3 values of a patch, here of pixels
    in [0, 1]. Nothing is learned.
    """

    config: PatchConfig

    def encode(self, pixels_BCHW: Tensor) -> PatchGrid:
        """Normalised patches `BHWC` with C = p·p·3, and what undoes the normalisation."""
        self.check_pixels(pixels_BCHW)
        p = self.config.patch_size
        with full_precision(pixels_BCHW.device):
            batch, _, height, width = pixels_BCHW.shape
            tiles = pixels_BCHW.reshape(batch, 3, height // p, p, width // p, p)
            patches_BHWC = tiles.permute(0, 2, 4, 3, 5, 1).flatten(3)
            variance, mean_BHW1 = torch.var_mean(patches_BHWC, dim=-1, keepdim=True)
            std_BHW1 = (variance + VARIANCE_EPS).sqrt()
            return PatchGrid((patches_BHWC - mean_BHW1) / std_BHW1, mean_BHW1, std_BHW1)

    def decode(self, grid: TokenGrid | PatchGrid) -> Tensor:
        """The picture of normalised patches, given the mean and deviation of each."""
        if not isinstance(grid, PatchGrid):
            raise TypeError(f"patch decodes a PatchGrid, not a {type(grid).__name__}")
        p = self.config.patch_size
        with full_precision(grid.patches_BHWC.device):
            patches_BHWC = grid.patches_BHWC.float() * grid.std_BHW1 + grid.mean_BHW1
            batch, height, width, _ = patches_BHWC.shape
            tiles = patches_BHWC.reshape(batch, height, width, p, p, 3).permute(0, 5, 1, 3, 2, 4)
            return tiles.reshape(batch, 3, height * p, width * p).clamp(0, 1)
