"""The contract of a tokenizer: `encode` pictures to a TokenGrid, `decode` back."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from toto.registry import Implementation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from toto.tokenizers.config import TokenizerConfig

__all__ = ["PatchGrid", "TokenGrid", "Tokenizer", "full_precision", "pieces"]

# Pixels in one pass on a CPU. dvae-tiny on 2 cores of an AMD EPYC, 64 frames a call: 1,419 frames
# of 64 px a second instead of 670 for the whole batch at once, 359 of 128 px instead of 120.
CPU_PIXELS = 2**16


@dataclass(frozen=True)
class TokenGrid:
    """Discrete tokens of B pictures: `codes_BHW` int64, each from 0 to codebook_size-1."""

    codes_BHW: Tensor


@dataclass(frozen=True)
class PatchGrid:
    """Continuous tokens of B images.

    Attributes:
        patches_BHWC: float32, what a model takes in.
        mean: with `std` undoes their normalisation: pixels = patches · std + mean; both broadcast
            to `BHWC`.
        std: positive.
    """

    patches_BHWC: Tensor
    mean: Tensor
    std: Tensor


class Tokenizer(nn.Module, Implementation):
    """Turns pictures into grids of tokens and back. Frozen while a backbone trains."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def encode(self, pixels_BCHW: Tensor) -> TokenGrid | PatchGrid:
        """Tokens of RGB pictures: float32 in [0, 1], square, of a size that `config.grid` takes."""

    @abstractmethod
    def decode(self, grid: TokenGrid | PatchGrid) -> Tensor:
        """The pictures that the tokens stand for: `BCHW` float32 in [0, 1]."""

    def patch_targets(self, patches: Tensor) -> Tensor:
        """Return what a model that takes these patches in and predicts patches regresses.

        Args:
            patches: float32 `[..., C]`, as `encode` gives them.

        Returns:
            Float32 of the same shape; the patches themselves unless a tokenizer overrides this.
        """
        return patches

    def check_pixels(self, pixels_BCHW: Tensor) -> None:
        """Refuse what `encode` cannot take.

        Raises:
            ValueError: not float32 RGB pictures, not square, or of a size that `config.grid`
                refuses.
        """
        shape = tuple(pixels_BCHW.shape)
        if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
            raise ValueError(f"pixels of shape {shape}; square RGB pictures are B×3×R×R")
        if pixels_BCHW.dtype != torch.float32:
            raise ValueError(f"pixels are {pixels_BCHW.dtype}; float32 in [0, 1] is expected")
        self.config.grid(shape[-1])

    def fingerprint(self) -> str:
        """Return a hash of the config and every weight: equal only if the tokens mean the same.

        The config's `weights` field says where weights were found, not what they are, and is left
        out, as are fields that were added to the config later and have their default
        (`Config.identity`).
        """
        return self._hash(self.config.identity_json(exclude={"weights"}))

    def has_fingerprint(self, fingerprint: str | None) -> bool:
        """Return whether a fingerprint that was recorded earlier is that of this tokenizer.

        Versions up to November 2026 hashed every field of a config, so fingerprints of plug-ins
        from then contain fields at their default, which `fingerprint` leaves out.
        """
        if fingerprint == self.fingerprint():
            return True
        everything = self.config.model_dump_json(exclude={"weights"})
        return fingerprint == self._hash(everything.encode())

    def _hash(self, config: bytes) -> str:
        digest = hashlib.sha256(config)
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            flat = tensor.detach().to("cpu").contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 throughout, inside autocast too: tokens must not depend on who asks, or where.

    cuDNN would round the inputs of convolutions to TF32's 10 bits, and some codes would not be
    those of a CPU.
    """
    with (
        torch.autocast(device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
    ):
        yield


def pieces(pixels_BCHW: Tensor) -> Sequence[Tensor]:
    """The batch on a GPU; on a CPU parts of it whose activations stay in its caches."""
    if pixels_BCHW.device.type != "cpu":
        return [pixels_BCHW]
    height, width = pixels_BCHW.shape[-2:]
    pictures = max(CPU_PIXELS // (height * width), 1)
    return [pixels_BCHW[i : i + pictures] for i in range(0, max(len(pixels_BCHW), 1), pictures)]
