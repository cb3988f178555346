"""How much of a picture a tokenizer keeps, and how evenly it uses its codes.

Pictures are `BCHW` floats in [0, 1]; each measure is of one picture, so that callers choose the
mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "SSIM_WINDOW",
    "codebook_stats",
    "collapse_bound",
    "decibels",
    "mean_square_error",
    "psnr",
    "ssim",
]

SSIM_WINDOW = 11
"""Side in pixels of the window of `ssim`, and so of the smallest picture that it takes."""

# Wang et al. 2004 (IEEE TIP 13(4)), §III-C: σ of the Gaussian window, K1 and K2, for a range of 1.
SSIM_SIGMA = 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
SMALLEST_ERROR = 1e-10


def mean_square_error(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """Of each picture, over its pixels and channels: `B`."""
    return (first_BCHW - second_BCHW).square().mean(dim=(1, 2, 3))


def decibels(mse: Tensor) -> Tensor:
    """The peak signal-to-noise ratio of a mean square error, at most 100 dB, for none at all."""
    return -10 * torch.log10(mse.clamp_min(SMALLEST_ERROR))


def psnr(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, at most 100: `B`."""
    return decibels(mean_square_error(first_BCHW, second_BCHW))


def ssim(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """Structural similarity of each picture, 1 where they are equal: `B`.

    Wang et al. 2004: a Gaussian window of 11 × 11 pixels with σ 1.5, K1 0.01, K2 0.03; the mean
    over all windows that lie inside the picture, and over the channels. In float64: a variance is
    a small difference of products, of which a GPU's TF32 would leave nothing.

    Raises:
        ValueError: pictures smaller than the window.
    """
    if min(first_BCHW.shape[-2:]) < SSIM_WINDOW:
        height, width = first_BCHW.shape[-2:]
        raise ValueError(
            f"SSIM looks through windows of {SSIM_WINDOW} × {SSIM_WINDOW} px, and the pictures "
            f"have {height} × {width}"
        )
    x, y = first_BCHW.double(), second_BCHW.double()
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = map(_windowed, (x, y, x * x, y * y, x * y))
    variance_x, variance_y = mean_xx - mean_x**2, mean_yy - mean_y**2
    covariance = mean_xy - mean_x * mean_y
    alike = (2 * mean_x * mean_y + SSIM_C1) * (2 * covariance + SSIM_C2)
    most = (mean_x**2 + mean_y**2 + SSIM_C1) * (variance_x + variance_y + SSIM_C2)
    return (alike / most).mean(dim=(1, 2, 3))


def codebook_stats(counts_V: Tensor) -> tuple[float, float]:
    """What share of the codes was used at all, and the perplexity: exp of their entropy.

    Args:
        counts_V: how often each code was used.

    Raises:
        ValueError: nothing was counted.
    """
    total = counts_V.sum()
    if total <= 0:
        raise ValueError("no code was counted; the codebook's use needs at least one token")
    p_V = counts_V.double() / total
    entropy = torch.special.entr(p_V).sum()
    return (counts_V > 0).double().mean().item(), entropy.exp().item()


def collapse_bound(num_codes: int) -> float:
    """Return the perplexity below which a codebook has collapsed: 1 % of its codes, at least 2.

    One code for everything has perplexity 1. Published codebooks stay above 1 %: the VQGAN of
    16,384 codes, which leaves most unused, has about 980 in use.
    """
    return max(2.0, num_codes / 100)


def _windowed(map_BCHW: Tensor) -> Tensor:
    """Gaussian means of all windows inside the picture: across, then down.

    As products with banded matrices, because torch's grouped convolutions are slow on a CPU.
    """
    down, across = (_window_matrix(size, map_BCHW) for size in map_BCHW.shape[-2:])
    return down @ (map_BCHW @ across.T)


def _window_matrix(size: int, like: Tensor) -> Tensor:
    """Row i holds the weights of the window that begins at i: `[size - 10, size]`."""
    reach = SSIM_WINDOW // 2
    weights = [math.exp(-((x / SSIM_SIGMA) ** 2) / 2) for x in range(-reach, reach + 1)]
    matrix = like.new_zeros(size - 2 * reach, size)
    for offset, weight in enumerate(weights):
        matrix.diagonal(offset).fill_(weight / sum(weights))
    return matrix
