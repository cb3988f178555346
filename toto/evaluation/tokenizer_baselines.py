"""What a trained tokenizer must beat at its own grid: two tokenizers that learn next to nothing.

The mean colour of each cell, and k-means of the cells' pixels with as many codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from toto.tokenizers.base import PatchGrid, TokenGrid, Tokenizer
from toto.tokenizers.codebook import Codebook
from toto.tokenizers.config import TokenizerConfig

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import ClassVar, Literal

__all__ = ["CELL_MEAN", "K_MEANS", "CellMean", "KMeans", "baselines_of", "images_to_fit"]

CELL_MEAN = "cell mean"
K_MEANS = "k-means"

FITTED_CELLS = 2**15
"""The most cells that k-means is fitted on: a few seconds a fit, whatever the number of codes."""
ITERATIONS = 10


class _CellConfig(TokenizerConfig):
    """The grid of another tokenizer, at one resolution."""

    output: ClassVar[Literal["codes", "patches"]] = "patches"
    height: int
    width: int
    num_codes: int = 0

    @property
    def codebook_size(self) -> int:
        return self.num_codes

    def grid(self, resolution: int) -> tuple[int, int]:
        return self.height, self.width

    def build(self) -> Tokenizer:
        raise NotImplementedError("baselines are made by baselines_of")


class CellMean(Tokenizer):
    """Keeps the mean colour of each cell of a grid, unrounded.

    Args:
        grid: (H, W) of the tokenizer that is compared.
    """

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__(_CellConfig(height=grid[0], width=grid[1]))
        self.cells = grid

    def encode(self, pixels_BCHW: Tensor) -> PatchGrid:
        """Return the colours, `BHW3`, with the sides of the images for `decode`."""
        colours_BCHW = nn.functional.adaptive_avg_pool2d(pixels_BCHW, self.cells)
        side = torch.ones_like(pixels_BCHW[:1, :1])
        return PatchGrid(colours_BCHW.permute(0, 2, 3, 1), 0 * side, side)

    def decode(self, grid: TokenGrid | PatchGrid) -> Tensor:
        """Return images of one colour a cell, `BCHW`."""
        assert isinstance(grid, PatchGrid)
        colours_BCHW = grid.patches_BHWC.permute(0, 3, 1, 2)
        return nn.functional.interpolate(colours_BCHW, size=grid.std.shape[-2:], mode="nearest")


class KMeans(Tokenizer):
    """Replaces the pixels of each cell by the nearest of V centres.

    Args:
        grid: (H, W) of the tokenizer that is compared; divides the side of the images.
        pixels_BCHW: the images that the centres are fitted to, by Lloyd's algorithm from centres
            drawn among the cells.
        num_codes: V at most: no more than there are cells.
    """

    def __init__(self, grid: tuple[int, int], pixels_BCHW: Tensor, num_codes: int) -> None:
        cells_MC = _cut(pixels_BCHW, grid).flatten(0, 2)
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(cells_MC), generator=generator)[:FITTED_CELLS]
        cells_MC = cells_MC[order.to(cells_MC.device)]
        num_codes = min(num_codes, len(cells_MC))
        super().__init__(_CellConfig(height=grid[0], width=grid[1], num_codes=num_codes))
        self.cells = grid
        self.fitted_cells = len(cells_MC)
        self.sides = tuple(pixels_BCHW.shape[-2:])
        self.codebook = Codebook(num_codes, cells_MC.shape[1]).to(cells_MC.device)
        self.requires_grad_(False)
        self.codebook.embedding.weight.copy_(cells_MC[:num_codes])
        for _ in range(ITERATIONS):
            self._move_centres(cells_MC)

    def encode(self, pixels_BCHW: Tensor) -> TokenGrid:
        """Return the nearest centre of each cell."""
        return TokenGrid(self.codebook.nearest(_cut(pixels_BCHW, self.cells).permute(0, 3, 1, 2)))

    def decode(self, grid: TokenGrid | PatchGrid) -> Tensor:
        """Return images made of centres, `BCHW`."""
        assert isinstance(grid, TokenGrid)
        (height, width), (rows, columns) = self.sides, self.cells
        cells = self.codebook.look_up(grid.codes_BHW).permute(0, 2, 3, 1)
        tiles = cells.reshape(-1, rows, columns, 3, height // rows, width // columns)
        return tiles.permute(0, 3, 1, 4, 2, 5).reshape(len(tiles), 3, height, width)

    def _move_centres(self, cells_MC: Tensor) -> None:
        """Move each centre to the mean of its cells; one without cells stays."""
        codes_M = self.codebook.nearest(cells_MC.T[None, :, :, None]).flatten()
        centres_VC = self.codebook.embedding.weight
        counts_V = torch.bincount(codes_M, minlength=len(centres_VC))
        sums_VC = torch.zeros_like(centres_VC).index_add_(0, codes_M, cells_MC)
        used_V = counts_V > 0
        centres_VC[used_V] = sums_VC[used_V] / counts_V[used_V, None]


def _cut(pixels_BCHW: Tensor, cells: tuple[int, int]) -> Tensor:
    """Return the pixels of each cell, `BHWC`, ordered (channel, row, column)."""
    rows, columns = cells
    batch, channels, height, width = pixels_BCHW.shape
    tiles = pixels_BCHW.reshape(batch, channels, rows, height // rows, columns, width // columns)
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(3)


def images_to_fit(grid: tuple[int, int]) -> int:
    """Return how many images have as many cells as k-means is fitted on."""
    return -(-FITTED_CELLS // (grid[0] * grid[1]))


@torch.no_grad()
def baselines_of(
    grid: tuple[int, int], num_codes: int, fitting: Iterable[Tensor]
) -> dict[str, Tokenizer]:
    """Make the baselines of a tokenizer.

    Args:
        grid: (H, W) of its tokens.
        num_codes: V; 0 for patches, which k-means is not compared with.
        fitting: batches `BCHW` float32 in [0, 1] of training images, of one size; read only where
            they are needed.

    Returns:
        `CELL_MEAN`, and `K_MEANS` where there are codes and the grid divides the images.
    """
    found: dict[str, Tokenizer] = {CELL_MEAN: CellMean(grid)}
    if num_codes:
        pixels_BCHW = torch.cat(list(fitting))
        height, width = pixels_BCHW.shape[-2:]
        if height % grid[0] == 0 and width % grid[1] == 0:
            found[K_MEANS] = KMeans(grid, pixels_BCHW, num_codes)
    return found
