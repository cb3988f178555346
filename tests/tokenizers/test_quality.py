from __future__ import annotations

import pytest
import torch
from skimage.metrics import structural_similarity

from toto.tokenizers.quality import codebook_stats, decibels, mean_square_error, psnr, ssim


def pictures(height: int, width: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Five: smooth, noisy, bright, black, and one grey."""
    generator = torch.Generator().manual_seed(height * width)
    rand = torch.rand(5, 3, height, width, generator=generator, dtype=torch.float64)
    ramp = torch.linspace(0, 1, width, dtype=torch.float64).expand(3, height, width)
    return torch.stack([ramp, rand[1], 0.9 + rand[2] / 10, 0 * ramp, 0 * ramp + 0.5]).to(dtype)


def scikit_ssim(first: torch.Tensor, second: torch.Tensor) -> float:
    return structural_similarity(
        first.numpy(), second.numpy(), data_range=1.0, channel_axis=0,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip


@pytest.mark.parametrize("size", [(11, 11), (16, 16), (24, 37)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ssim_equals_scikit_images(size: tuple[int, int], dtype: torch.dtype) -> None:
    first = pictures(*size, dtype)
    noise = torch.randn(first.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    for second in (first.flip(0), (first + noise / 20).clamp(0, 1), 1 - first):
        theirs = [scikit_ssim(a.double(), b.double()) for a, b in zip(first, second, strict=True)]
        assert ssim(first, second).tolist() == pytest.approx(theirs, abs=1e-9)


def test_ssim_is_one_of_equal_pictures_and_refuses_small_ones() -> None:
    first = pictures(12, 12, torch.float32)
    assert ssim(first, first).tolist() == pytest.approx([1.0] * 5)
    with pytest.raises(ValueError, match="windows of 11 × 11 px, and the pictures have 8 × 12"):
        ssim(first[:, :, :8], first[:, :, :8])


def test_psnr_by_hand() -> None:
    black = torch.zeros(2, 3, 4, 4)
    different = torch.stack([black[0] + 0.1, black[0] + 1.0])
    assert mean_square_error(different, black).tolist() == pytest.approx([0.01, 1.0])
    assert psnr(different, black).tolist() == pytest.approx([20.0, 0.0], abs=1e-4)
    assert psnr(black, black).tolist() == [100.0, 100.0]
    assert decibels(torch.tensor(0.001)).item() == pytest.approx(30.0)


def test_codebook_stats_by_hand() -> None:
    assert codebook_stats(torch.tensor([4.0, 4.0, 0.0, 0.0])) == pytest.approx((0.5, 2.0))
    assert codebook_stats(torch.ones(8)) == pytest.approx((1.0, 8.0))
    with pytest.raises(ValueError, match="no code was counted"):
        codebook_stats(torch.zeros(4))
