from __future__ import annotations

import pytest
import torch

from toto.tokenizers.base import PatchGrid, TokenGrid
from toto.tokenizers.config import PatchConfig
from toto.tokenizers.patch import PatchTokenizer


def encode(pixels: torch.Tensor, patch_size: int) -> tuple[PatchTokenizer, PatchGrid]:
    tokenizer = PatchTokenizer(PatchConfig(patch_size=patch_size))
    return tokenizer, tokenizer.encode(pixels)


def pixels(batch: int = 2, resolution: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, resolution, resolution, generator=generator)


def mae_target(x_BCHW: torch.Tensor, p: int) -> torch.Tensor:
    """He et al.'s normalised target, patch by patch: less the mean, over √(s² + 1e-6)."""
    batch, _, height, width = x_BCHW.shape
    target = torch.empty(batch, height // p, width // p, p * p * 3, dtype=torch.float64)
    for b in range(batch):
        for h in range(height // p):
            for w in range(width // p):
                patch_CPP = x_BCHW[b, :, h * p : (h + 1) * p, w * p : (w + 1) * p].double()
                values = patch_CPP.permute(1, 2, 0).flatten()
                centred = values - values.mean()
                variance = centred.square().sum() / (len(values) - 1)
                target[b, h, w] = centred / (variance + 1e-6).sqrt()
    return target


@pytest.mark.parametrize("patch_size", [2, 4, 16])
def test_patches_are_the_targets_of_mae(patch_size: int) -> None:
    x = pixels()
    x[0, :, :16, :16] = 0.25  # flat patches, and some of small contrast
    x[0, :, 16:, :16] = 0.5 + 0.002 * x[0, :, 16:, :16]
    _, grid = encode(x, patch_size)
    torch.testing.assert_close(
        grid.patches_BHWC.double(), mae_target(x, patch_size), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("patch_size", [2, 8, 16])
def test_bytes_come_back_exactly(patch_size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator)
    x[0, :, :16] = 200
    tokenizer, grid = encode(x.float() / 255, patch_size)
    assert torch.equal((tokenizer.decode(grid) * 255).round().byte(), x)


@pytest.mark.parametrize("patch_size", [1, 4, 16, 32])
def test_decode_undoes_encode(patch_size: int) -> None:
    x = pixels()
    tokenizer, grid = encode(x, patch_size)
    assert grid.patches_BHWC.shape == (2, 32 // patch_size, 32 // patch_size, 3 * patch_size**2)
    torch.testing.assert_close(tokenizer.decode(grid), x, atol=1e-6, rtol=0)


def test_patch_order_is_row_column_channel() -> None:
    x = pixels(1)
    _, grid = encode(x, 8)
    raw = grid.patches_BHWC * grid.std_BHW1 + grid.mean_BHW1
    for h, w, row, column, channel in [(0, 0, 0, 0, 1), (1, 2, 3, 5, 0), (3, 0, 7, 7, 2)]:
        value = raw[0, h, w, (row * 8 + column) * 3 + channel]
        assert value.item() == pytest.approx(
            x[0, channel, h * 8 + row, w * 8 + column].item(), abs=1e-6
        )


def test_each_patch_is_normalised_by_its_unbiased_variance() -> None:
    x = pixels()
    _, grid = encode(x, 16)
    patch = x[1, :, 16:32, :16]
    assert grid.mean_BHW1[1, 1, 0, 0].item() == pytest.approx(patch.mean().item(), abs=1e-6)
    expected = (patch.flatten().var(unbiased=True) + 1e-6).sqrt()
    assert grid.std_BHW1[1, 1, 0, 0].item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(
        grid.patches_BHWC.mean(dim=-1), torch.zeros(2, 2, 2), atol=1e-5, rtol=0
    )


def test_a_flat_patch_is_finite_and_comes_back() -> None:
    x = torch.full((1, 3, 16, 16), 0.5)
    tokenizer, grid = encode(x, 16)
    assert grid.patches_BHWC.abs().max() < 1e-3
    torch.testing.assert_close(tokenizer.decode(grid), x)


def test_decode_keeps_predictions_in_range() -> None:
    tokenizer, grid = encode(pixels(), 16)
    wild = PatchGrid(grid.patches_BHWC * 10, grid.mean_BHW1, grid.std_BHW1)
    decoded = tokenizer.decode(wild)
    assert decoded.min() == 0
    assert decoded.max() == 1


def test_decode_refuses_codes() -> None:
    tokenizer = PatchTokenizer(PatchConfig())
    with pytest.raises(TypeError, match="PatchGrid, not a TokenGrid"):
        tokenizer.decode(TokenGrid(torch.zeros(1, 1, 1, dtype=torch.int64)))


def test_encode_refuses_a_size_between_patches() -> None:
    with pytest.raises(ValueError, match="40 px is no multiple of 16 px per token; 32 is"):
        encode(pixels(1, 40), 16)


def test_fingerprint_tells_patch_sizes_apart() -> None:
    sizes = (4, 8, 8)
    first, second, third = (PatchTokenizer(PatchConfig(patch_size=p)).fingerprint() for p in sizes)
    assert first != second == third
