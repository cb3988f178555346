"""The contract of a tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from toto.testing.contract import ContractError, close, described, difference, expect, generator
from toto.tokenizers.base import PatchGrid, TokenGrid, Tokenizer

if TYPE_CHECKING:
    from toto.tokenizers.config import TokenizerConfig

__all__ = ["TEST_RESOLUTION", "check_tokenizer"]

TEST_RESOLUTION = 64
"""Side in pixels of the images that tokenizers are checked with, unless another is given."""


def check_tokenizer(config: TokenizerConfig, *, resolution: int = TEST_RESOLUTION) -> list[str]:
    """Check shapes, dtypes, ranges, determinism, independence of frames, and the round trip.

    Args:
        config: with weights, real or random.
        resolution: side of the test images; must suit `config.grid`.

    Returns:
        What was checked, a line each.

    Raises:
        ContractError: the first breach.
    """
    height, width = _token_grid(config, resolution)
    if config.missing_weights:
        raise ContractError(f"no weights to check. {config.missing_weights}")
    tokenizer = config.build()
    expect(
        isinstance(tokenizer, Tokenizer),
        f"build() returned {described(tokenizer)} instead of a Tokenizer",
    )
    tokenizer.eval()
    loose = _loose_tensors(tokenizer)
    expect(
        not loose,
        f"neither parameter nor buffer, so that .to(device) and fingerprint() do not see it: "
        f"{', '.join(loose)}. Use register_buffer",
    )
    pixels_BCHW = _images(resolution)
    with torch.no_grad():
        grid = tokenizer.encode(pixels_BCHW)
        tokens = _tokens(config, grid)
        again = _tokens(config, tokenizer.encode(pixels_BCHW))
        alone = _tokens(config, tokenizer.encode(pixels_BCHW[1:2]))
        decoded_BCHW = tokenizer.decode(grid)
    shape = [len(pixels_BCHW), height, width]
    expect(
        list(tokens.shape[:3]) == shape,
        f"encode returned tokens of shape {list(tokens.shape[:3])}, and grid({resolution}) makes "
        f"it {shape}",
    )
    changed = (tokens != again).float().mean().item()
    expect(changed == 0, f"{changed:.2%} of the tokens differ when the same images come again")
    changed = (tokens[1:2] != alone).float().mean().item()
    expect(changed < 0.001, f"{changed:.2%} of an image's tokens differ when its batch is another")
    _check_decoded(config, decoded_BCHW, pixels_BCHW)
    prints = [tokenizer.fingerprint()[:12], config.build().fingerprint()[:12]]
    expect(
        prints[0] == prints[1],
        f"the config was built twice, with the fingerprints {prints[0]} and {prints[1]}: weights "
        "are random, or not all are loaded",
    )
    return [
        f"encode: {config.output} [B, {height}, {width}] at {resolution} px",
        "deterministic, and independent of the batch around an image",
        "decode: pixels of the same size in [0, 1]",
        "fingerprint: stable",
    ]


def _token_grid(config: TokenizerConfig, resolution: int) -> tuple[int, int]:
    """What `grid` and `codebook_size` say, once they say it as agreed."""
    try:
        grid = config.grid(resolution)
    except ValueError as error:
        raise ContractError(
            f"grid({resolution}): {error}. Check at another resolution (`toto check tokenizer "
            "NAME --resolution N`)"
        ) from error
    is_pair = isinstance(grid, tuple) and [type(side) for side in grid] == [int, int]
    expect(is_pair, f"grid({resolution}) returned {grid!r} instead of two ints (H, W)")
    size = config.codebook_size
    expect(
        isinstance(size, int),
        f"codebook_size is {described(size)} instead of an int; write it as a property",
    )
    return grid


def _images(resolution: int) -> torch.Tensor:
    """Two of noise, and a black and a white one, which reach the outermost codes."""
    noise = torch.rand(2, 3, resolution, resolution, generator=generator())
    return torch.cat([noise, torch.zeros_like(noise[:1]), torch.ones_like(noise[:1])])


def _tokens(config: TokenizerConfig, grid: TokenGrid | PatchGrid) -> torch.Tensor:
    """The tokens of what `encode` gave, once they are of the kind that the config says."""
    if config.output == "codes":
        expect(
            isinstance(grid, TokenGrid), f"encode returned {described(grid)} instead of a TokenGrid"
        )
        assert isinstance(grid, TokenGrid)
        codes = grid.codes_BHW
        expect(codes.dtype == torch.int64, f"codes are {codes.dtype} instead of torch.int64")
        low, high = int(codes.min()), int(codes.max())
        expect(
            low >= 0 and high < config.codebook_size,
            f"codes are {low}..{high}, and codebook_size allows 0..{config.codebook_size - 1}",
        )
        return codes
    expect(isinstance(grid, PatchGrid), f"encode returned {described(grid)} instead of a PatchGrid")
    assert isinstance(grid, PatchGrid)
    dim = grid.patches_BHWC.shape[-1]
    expect(dim == config.patch_dim, f"patches of {dim} values, and patch_dim is {config.patch_dim}")
    return grid.patches_BHWC


def _check_decoded(
    config: TokenizerConfig, decoded_BCHW: torch.Tensor, pixels_BCHW: torch.Tensor
) -> None:
    expect(
        isinstance(decoded_BCHW, torch.Tensor),
        f"decode returned {described(decoded_BCHW)} instead of a Tensor",
    )
    expect(
        decoded_BCHW.dtype == torch.float32,
        f"decoded pixels are {decoded_BCHW.dtype} instead of torch.float32",
    )
    expect(
        decoded_BCHW.shape == pixels_BCHW.shape,
        f"decode returned {list(decoded_BCHW.shape)} for images of {list(pixels_BCHW.shape)}",
    )
    if config.output == "patches":
        expect(
            close(decoded_BCHW, pixels_BCHW),
            "decode returns other pixels than were encoded, by up to "
            f"{difference(decoded_BCHW, pixels_BCHW):.2g}, though patches lose nothing",
        )
        return
    low, high = float(decoded_BCHW.min()), float(decoded_BCHW.max())
    expect(
        low >= -1e-4 and high <= 1 + 1e-4,
        f"decoded pixels are {low:.4g} to {high:.4g}, and [0, 1] is allowed",
    )


def _loose_tensors(tokenizer: Tokenizer) -> list[str]:
    """Tensors that are plain attributes of a module."""
    return [
        f"{place}.{name}".lstrip(".")
        for place, module in tokenizer.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    ]
