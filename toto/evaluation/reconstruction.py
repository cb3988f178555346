"""What a tokenizer keeps of pictures: errors of its reconstructions, and the use of its codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from toto.tokenizers.base import PatchGrid, TokenGrid, Tokenizer
from toto.tokenizers.quality import codebook_stats, decibels, mean_square_error, ssim

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

__all__ = ["DEFINITIONS", "CodebookUse", "ReconstructionQuality", "measure", "reconstruct"]

DEFINITIONS = {
    "psnr": "dB; the mean over pictures of each picture's own PSNR, at most 100 for one picture",
    "psnr_of_mean_error": "dB; the PSNR of the square error's mean over all pictures",
    "ssim": "Wang et al. 2004: Gaussian window of 11 px, sigma 1.5, K1 0.01, K2 0.03; the mean "
    "over windows inside the picture, over R, G and B, and over pictures",
    "share": "codes that at least one token of these pictures has, of the codebook's",
    "perplexity": "exp of the entropy of the codes over all tokens of these pictures",
}
"""Of the figures below. The original is the crop in 8 bits, the reconstruction is not rounded."""


@dataclass(frozen=True)
class CodebookUse:
    """How the tokens of all pictures together use the codes; see DEFINITIONS."""

    size: int
    tokens: int
    used: int
    share: float
    perplexity: float


@dataclass(frozen=True)
class ReconstructionQuality:
    """What was measured on `pictures` pictures; see DEFINITIONS. Patches have no codebook."""

    pictures: int
    psnr: float
    psnr_of_mean_error: float
    ssim: float
    codebook: CodebookUse | None


@torch.inference_mode()
def reconstruct(tokenizer: Tokenizer, pixels_BCHW: Tensor) -> tuple[TokenGrid | PatchGrid, Tensor]:
    """The tokens of pictures, and the pictures `BCHW` in [0, 1] that they stand for."""
    grid = tokenizer.encode(pixels_BCHW)
    return grid, tokenizer.decode(grid).clamp(0, 1)


@torch.inference_mode()
def measure(tokenizer: Tokenizer, batches: Iterable[Tensor]) -> ReconstructionQuality:
    """Encode and decode pictures, and compare.

    Memory holds one batch and a count for each code.

    Args:
        tokenizer: in evaluation mode, on the device of the batches.
        batches: `BCHW` float32 in [0, 1], of a size that the tokenizer and `ssim` take.

    Raises:
        ValueError: there are no pictures.
    """
    pictures = 0
    sums = torch.zeros(3, dtype=torch.float64)
    counts_V = torch.zeros(tokenizer.config.codebook_size, dtype=torch.int64)
    for pixels_BCHW in batches:
        grid, decoded_BCHW = reconstruct(tokenizer, pixels_BCHW)
        mse_B = mean_square_error(decoded_BCHW, pixels_BCHW)
        measured_3B = torch.stack([mse_B, decibels(mse_B), ssim(decoded_BCHW, pixels_BCHW)])
        sums += measured_3B.double().sum(dim=1).cpu()
        pictures += len(pixels_BCHW)
        if isinstance(grid, TokenGrid):
            counts_V += torch.bincount(grid.codes_BHW.flatten().cpu(), minlength=len(counts_V))
    if not pictures:
        raise ValueError("no pictures to measure a tokenizer on")
    mse, psnr, mean_ssim = sums / pictures
    return ReconstructionQuality(
        pictures=pictures,
        psnr=psnr.item(),
        psnr_of_mean_error=decibels(mse).item(),
        ssim=mean_ssim.item(),
        codebook=_codebook_use(counts_V) if len(counts_V) else None,
    )


def _codebook_use(counts_V: Tensor) -> CodebookUse:
    share, perplexity = codebook_stats(counts_V)
    return CodebookUse(
        size=len(counts_V),
        tokens=int(counts_V.sum()),
        used=int((counts_V > 0).sum()),
        share=share,
        perplexity=perplexity,
    )
