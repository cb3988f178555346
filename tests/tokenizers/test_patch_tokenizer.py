from __future__ import annotations

import hashlib

import pytest
import torch

from toto.tokenizers.base import PatchGrid, TokenGrid
from toto.tokenizers.config import PatchConfig
from toto.tokenizers.patch import PatchTokenizer

NORMS = ("imagenet", "image", "patch")
EACH_NORM = pytest.mark.parametrize("norm", NORMS)
# facebookresearch/mae, main_pretrain.py: transforms.Normalize.
MEAN = torch.tensor([0.485, 0.456, 0.406])
STD = torch.tensor([0.229, 0.224, 0.225])


def encode(
    pixels: torch.Tensor, patch_size: int, norm: str = "imagenet"
) -> tuple[PatchTokenizer, PatchGrid]:
    tokenizer = PatchTokenizer(PatchConfig(patch_size=patch_size, input_norm=norm))
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
    tokenizer, grid = encode(x, patch_size)
    targets = tokenizer.patch_targets(grid.patches_BHWC)
    # MAE takes both out of images that ImageNet's constants have normalised.
    normalised = (x - MEAN[:, None, None]) / STD[:, None, None]
    torch.testing.assert_close(
        targets.double(), mae_target(normalised, patch_size), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("patch_size", [2, 4, 16])
def test_under_patch_inputs_and_targets_are_one_as_in_older_runs(patch_size: int) -> None:
    x = pixels()
    x[0, :, :16, :16] = 0.25
    x[0, :, 16:, :16] = 0.5 + 0.002 * x[0, :, 16:, :16]
    tokenizer, grid = encode(x, patch_size, "patch")
    torch.testing.assert_close(
        grid.patches_BHWC.double(), mae_target(x, patch_size), atol=1e-4, rtol=1e-4
    )
    assert torch.equal(tokenizer.patch_targets(grid.patches_BHWC), grid.patches_BHWC)


def test_inputs_are_pixels_under_the_constants_of_imagenet() -> None:
    x = pixels()
    _, grid = encode(x, 8)
    for b, h, w, row, column, channel in [
        (0, 0, 0, 0, 1, 0),
        (1, 2, 3, 7, 5, 2),
        (0, 3, 1, 4, 4, 1),
    ]:
        value = (x[b, channel, h * 8 + row, w * 8 + column] - MEAN[channel]) / STD[channel]
        found = grid.patches_BHWC[b, h, w, (row * 8 + column) * 3 + channel]
        assert found.item() == pytest.approx(value.item(), abs=1e-5)


def test_inputs_of_an_image_have_its_mean_and_std() -> None:
    x = pixels()
    x[1] = 0.2 + 0.1 * x[1]
    _, grid = encode(x, 8, "image")
    for b in range(2):
        expected = (x[b] - x[b].mean()) / x[b].std()
        patch = expected[:, 8:16, 24:32].permute(1, 2, 0).flatten()
        torch.testing.assert_close(grid.patches_BHWC[b, 1, 3], patch, atol=1e-3, rtol=1e-3)


def brightened(x: torch.Tensor, kind: str) -> torch.Tensor:
    """The second patch of 16 px of the first row, in another brightness, contrast or colour."""
    changed = x.clone()
    patch = changed[:, :, :16, 16:32]
    if kind == "brightness":
        patch += 0.2
    elif kind == "contrast":
        patch.copy_(0.5 * (patch - patch.mean()) + patch.mean())
    else:
        patch += torch.tensor([0.2, 0.0, -0.1])[:, None, None]
    return changed


@pytest.mark.parametrize("kind", ["brightness", "contrast", "colour"])
@pytest.mark.parametrize("norm", ["imagenet", "image"])
def test_inputs_tell_brightness_contrast_and_colour_of_a_patch(norm: str, kind: str) -> None:
    x = 0.3 + 0.4 * pixels()
    tokenizer, before = encode(x, 16, norm)
    after = tokenizer.encode(brightened(x, kind))
    moved = (after.patches_BHWC - before.patches_BHWC)[:, 0, 1].abs().mean()
    assert moved > 0.2


def test_inputs_of_older_runs_hid_them() -> None:
    x = 0.3 + 0.4 * pixels()
    tokenizer, before = encode(x, 16, "patch")
    for kind in ("brightness", "contrast"):
        after = tokenizer.encode(brightened(x, kind))
        torch.testing.assert_close(after.patches_BHWC, before.patches_BHWC, atol=1e-2, rtol=1e-2)


@EACH_NORM
@pytest.mark.parametrize("patch_size", [2, 8, 16])
def test_bytes_come_back_exactly(patch_size: int, norm: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator)
    x[0, :, :16] = 200
    tokenizer, grid = encode(x.float() / 255, patch_size, norm)
    assert torch.equal((tokenizer.decode(grid) * 255).round().byte(), x)


@EACH_NORM
@pytest.mark.parametrize("patch_size", [1, 4, 16, 32])
def test_decode_undoes_encode(patch_size: int, norm: str) -> None:
    x = pixels()
    tokenizer, grid = encode(x, patch_size, norm)
    assert grid.patches_BHWC.shape == (2, 32 // patch_size, 32 // patch_size, 3 * patch_size**2)
    torch.testing.assert_close(tokenizer.decode(grid), x, atol=1e-6, rtol=0)


def test_patch_order_is_row_column_channel() -> None:
    x = pixels(1)
    _, grid = encode(x, 8)
    raw = grid.patches_BHWC * grid.std + grid.mean
    for h, w, row, column, channel in [(0, 0, 0, 0, 1), (1, 2, 3, 5, 0), (3, 0, 7, 7, 2)]:
        value = raw[0, h, w, (row * 8 + column) * 3 + channel]
        assert value.item() == pytest.approx(
            x[0, channel, h * 8 + row, w * 8 + column].item(), abs=1e-6
        )


def test_each_patch_is_normalised_by_its_unbiased_variance() -> None:
    x = pixels()
    _, grid = encode(x, 16, "patch")
    patch = x[1, :, 16:32, :16]
    assert grid.mean[1, 1, 0, 0].item() == pytest.approx(patch.mean().item(), abs=1e-6)
    expected = (patch.flatten().var(unbiased=True) + 1e-6).sqrt()
    assert grid.std[1, 1, 0, 0].item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(
        grid.patches_BHWC.mean(dim=-1), torch.zeros(2, 2, 2), atol=1e-5, rtol=0
    )


def test_a_flat_patch_is_finite_and_comes_back() -> None:
    x = torch.full((1, 3, 16, 16), 0.5)
    tokenizer, grid = encode(x, 16, "patch")
    assert grid.patches_BHWC.abs().max() < 1e-3
    torch.testing.assert_close(tokenizer.decode(grid), x)


def test_decode_keeps_predictions_in_range() -> None:
    tokenizer, grid = encode(pixels(), 16)
    wild = PatchGrid(grid.patches_BHWC * 10, grid.mean, grid.std)
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


def test_fingerprints_tell_inputs_apart_and_older_runs_keep_theirs() -> None:
    prints = {norm: encode(pixels(), 8, norm)[0].fingerprint() for norm in NORMS}
    assert len(set(prints.values())) == 3
    # What toto recorded of {name: patch, patch_size: 8}, before there was input_norm.
    older = hashlib.sha256(b'{"name":"patch","patch_size":8}').hexdigest()
    assert prints["patch"] == older
