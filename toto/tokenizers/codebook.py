"""Vector quantization: vectors to the nearest of V code vectors (van den Oord et al. 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Codebook"]

# Entries of the distances [pixels, V] held at once: 64 MiB in fp32.
DISTANCES = 2**24


class Codebook(nn.Module):
    """V vectors of C values; `embedding.weight` is VC, as in the published VQGAN."""

    def __init__(self, num_codes: int, code_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, code_dim)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the vectors from U(-1/V, 1/V)."""
        bound = 1 / self.embedding.num_embeddings
        nn.init.uniform_(self.embedding.weight, -bound, bound, generator=generator)

    @torch.no_grad()
    def nearest(self, z_BCHW: Tensor) -> Tensor:
        """The code of the least Euclidean distance, `BHW` int64; the lowest of equal ones.

        In float32, inside autocast too.
        """
        weight_VC = self.embedding.weight
        z_MC = z_BCHW.permute(0, 2, 3, 1).flatten(0, 2).float()
        with torch.autocast(z_BCHW.device.type, enabled=False):
            square_V = weight_VC.square().sum(dim=1)
            # |z|² is the same for every code and left out.
            found = [
                torch.addmm(square_V, part_MC, weight_VC.T, alpha=-2).argmin(dim=1)
                for part_MC in self._parts(z_MC)
            ]
        return torch.cat(found).view(len(z_BCHW), *z_BCHW.shape[2:])

    def look_up(self, codes_BHW: Tensor) -> Tensor:
        """The vectors of codes, `BCHW`."""
        vectors_BHWC: Tensor = self.embedding(codes_BHW)
        return vectors_BHWC.permute(0, 3, 1, 2)

    def _parts(self, z_MC: Tensor) -> Iterator[Tensor]:
        size = max(DISTANCES // self.embedding.num_embeddings, 1)
        for start in range(0, max(len(z_MC), 1), size):
            yield z_MC[start : start + size]
