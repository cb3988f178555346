from __future__ import annotations

import math

import pytest
import torch

from toto.evaluation.reconstruction import measure, reconstruct
from toto.tokenizers.base import TokenGrid, Tokenizer
from toto.tokenizers.config import DvaeConfig, PatchConfig, TokenizerConfig
from toto.tokenizers.quality import ssim

TINY = DvaeConfig(weights="random:0", width=8, num_codes=32, blocks_per_group=1, decoder_stem=8)


class BrighterConfig(TokenizerConfig):
    """Codes are the mean of 8 × 8 pixels in eighths; decoding adds that many hundredths."""

    @property
    def codebook_size(self) -> int:
        return 8

    def grid(self, resolution: int) -> tuple[int, int]:
        return resolution // 8, resolution // 8

    def build(self) -> Tokenizer:
        return Brighter(self)


class Brighter(Tokenizer):
    def encode(self, pixels_BCHW: torch.Tensor) -> TokenGrid:
        self.given_BCHW = pixels_BCHW
        mean_BHW = torch.nn.functional.avg_pool2d(pixels_BCHW.mean(1), 8)
        return TokenGrid((mean_BHW * 8).long().clamp(max=7))

    def decode(self, grid: object) -> torch.Tensor:
        assert isinstance(grid, TokenGrid)
        more_BHW = grid.codes_BHW.repeat_interleave(8, 1).repeat_interleave(8, 2) / 100
        return self.given_BCHW + more_BHW[:, None]


def greys(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 16, 16).contiguous()


def test_the_means_are_those_that_are_promised() -> None:
    # Codes 1 and 4: errors of 0.01 and 0.04, so 40 dB and 27.96 dB.
    pixels = greys(0.2, 0.5)
    quality = measure(BrighterConfig().build(), [pixels])
    assert quality.pictures == 2
    assert quality.psnr == pytest.approx((40 - 20 * math.log10(0.04)) / 2, abs=1e-3)
    mean_error = (0.01**2 + 0.04**2) / 2
    assert quality.psnr_of_mean_error == pytest.approx(-10 * math.log10(mean_error), abs=1e-3)
    both = ssim(pixels, pixels + torch.tensor([0.01, 0.04]).view(-1, 1, 1, 1))
    assert quality.ssim == pytest.approx(both.mean().item(), abs=1e-5)
    assert quality.codebook is not None
    assert (quality.codebook.size, quality.codebook.tokens, quality.codebook.used) == (8, 8, 2)
    assert (quality.codebook.share, quality.codebook.perplexity) == pytest.approx((0.25, 2.0))


def test_what_is_brighter_than_white_is_white() -> None:
    _, decoded = reconstruct(BrighterConfig().build(), greys(1.0))
    assert decoded.max() == 1.0


def test_the_size_of_batches_does_not_matter() -> None:
    pixels = torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokenizer = TINY.build().eval()
    whole = measure(tokenizer, [pixels])
    parts = measure(tokenizer, iter(pixels.split(2)))
    assert whole.codebook == parts.codebook
    for name in ("pictures", "psnr", "psnr_of_mean_error", "ssim"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-5)


def test_patches_have_no_codebook_and_lose_nothing() -> None:
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    quality = measure(PatchConfig(patch_size=8).build(), [pixels])
    assert quality.codebook is None
    assert quality.psnr > 90
    assert quality.ssim == pytest.approx(1.0, abs=1e-6)


def test_no_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        measure(TINY.build(), [])
