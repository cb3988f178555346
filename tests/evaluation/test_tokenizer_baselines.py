from __future__ import annotations

import pytest
import torch

from toto.evaluation.reconstruction import measure
from toto.evaluation.tokenizer_baselines import CellMean, KMeans, baselines_of


def images(count: int = 8, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grid", [(4, 4), (2, 8), (32, 32)])
def test_a_cell_keeps_its_mean_colour(grid: tuple[int, int]) -> None:
    x = images()
    baseline = CellMean(grid)
    decoded = baseline.decode(baseline.encode(x))
    rows, columns = 32 // grid[0], 32 // grid[1]
    for row, column in ((0, 0), (grid[0] - 1, grid[1] - 1)):
        cell = slice(row * rows, (row + 1) * rows), slice(column * columns, (column + 1) * columns)
        mean = x[:, :, *cell].mean(dim=(2, 3), keepdim=True)
        torch.testing.assert_close(decoded[:, :, *cell], mean.expand(-1, -1, rows, columns))


@pytest.mark.parametrize("grid", [(4, 4), (2, 8)])
def test_k_means_gives_back_cells_that_it_has_a_centre_for(grid: tuple[int, int]) -> None:
    x = images(2)
    everything = KMeans(grid, x, num_codes=10_000)
    assert everything.config.codebook_size == 2 * grid[0] * grid[1]
    torch.testing.assert_close(everything.decode(everything.encode(x)), x)


def test_k_means_finds_the_clusters_of_cells() -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.rand(3, 3, 8, 8, generator=generator)
    chosen = torch.randint(3, (16, 4, 4), generator=generator)
    x = kinds[chosen].permute(0, 3, 1, 4, 2, 5).reshape(16, 3, 32, 32)
    noisy = (x + 0.01 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    found = baselines_of((4, 4), 12, [noisy[:8], noisy[8:12]])
    quality = measure(found["k-means"], [noisy[12:]])
    assert quality.psnr > 38  # the noise alone costs 40 dB
    assert quality.psnr > measure(found["cell mean"], [noisy[12:]]).psnr + 20
    assert quality.codebook is not None
    assert quality.codebook.size == 12


def test_more_centres_are_closer() -> None:
    x = images(16)
    errors = [
        (baseline.decode(baseline.encode(x)) - x).square().mean().item()
        for baseline in (KMeans((8, 8), x, num_codes) for num_codes in (1, 16, 256))
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] == pytest.approx(x.var().item(), rel=0.02)


def test_patches_are_compared_with_the_mean_alone() -> None:
    assert list(baselines_of((4, 4), 0, [])) == ["cell mean"]
    assert list(baselines_of((5, 5), 16, [images()])) == ["cell mean"]
