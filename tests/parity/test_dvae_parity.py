"""The dVAE equals the published one, the package dall_e, on the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from toto.tokenizers.config import DvaeConfig
from toto.tokenizers.dvae import Dvae, map_pixels, unmap_pixels

dall_e = pytest.importorskip(
    "dall_e",
    reason="the published dVAE is not installed: "
    "pip install --no-deps -r requirements-reference.txt",
)

TOLERANCE = 1e-5
NARROW = DvaeConfig(weights="random:0", width=64, decoder_stem=24)


def pictures(count: int, size: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def spread(dvae: Dvae) -> Dvae:
    """Give random weights what trained ones have: biases, strong residual paths, many codes."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in dvae.named_parameters():
        if name.endswith(".b"):
            parameter.normal_(std=0.1, generator=generator)
        elif "res_path" in name:
            parameter.mul_(2)
    # Random weights favour a handful of codes wherever they look: take their lead away.
    lead_V = dvae.encoder_logits(pictures(1, 128, seed=5)).mean((0, 2, 3))
    dvae.encoder.get_parameter("blocks.output.conv.b").sub_(lead_V)
    return dvae


def built(config: DvaeConfig) -> Dvae:
    dvae = config.build()
    assert isinstance(dvae, Dvae)
    return spread(dvae)


@pytest.fixture(scope="module")
def narrow() -> Dvae:
    return built(NARROW)


def their_encoder(dvae: Dvae) -> nn.Module:
    config = dvae.config
    encoder = dall_e.Encoder(
        n_hid=config.width, n_blk_per_group=config.blocks_per_group, vocab_size=config.num_codes
    )
    encoder.load_state_dict(dvae.encoder.state_dict(), strict=True)
    return encoder


def their_decoder(dvae: Dvae) -> nn.Module:
    config = dvae.config
    decoder = dall_e.Decoder(
        n_init=config.decoder_stem,
        n_hid=config.width,
        n_blk_per_group=config.blocks_per_group,
        vocab_size=config.num_codes,
    )
    decoder.load_state_dict(dvae.decoder.state_dict(), strict=True)
    return decoder


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize(("count", "size", "side"), [(8, 128, 16), (2, 256, 32), (1, 512, 64)])
def test_logits_and_ids_equal_the_published_encoder(
    narrow: Dvae, count: int, size: int, side: int
) -> None:
    pixels = pictures(count, size, seed=2)
    theirs = their_encoder(narrow)(dall_e.map_pixels(pixels))
    assert relative_error(narrow.encoder_logits(pixels), theirs) < TOLERANCE
    codes = narrow.encode(pixels).codes_BHW
    assert codes.shape == (count, side, side)
    assert torch.equal(codes, theirs.argmax(dim=1))
    assert codes.unique().numel() >= 1000, "few codes: equal ids would prove little"


@torch.no_grad()
@pytest.mark.parametrize(("side", "size"), [(16, 128), (32, 256)])
def test_pictures_equal_the_published_decoder(narrow: Dvae, side: int, size: int) -> None:
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(NARROW.num_codes, (1, side, side), generator=generator)
    one_hot = nn.functional.one_hot(codes, NARROW.num_codes).permute(0, 3, 1, 2).float()
    theirs = their_decoder(narrow)(one_hot)
    assert theirs.shape == (1, 6, size, size)
    assert relative_error(narrow.decoder_stats(one_hot), theirs) < TOLERANCE
    assert relative_error(narrow.code_stats(codes), theirs) < TOLERANCE


@torch.no_grad()
def test_the_network_of_published_size_equals_the_published_one() -> None:
    dvae = built(DvaeConfig(weights="random:0"))
    pixels = pictures(1, 64, seed=4)
    logits = their_encoder(dvae)(dall_e.map_pixels(pixels))
    assert relative_error(dvae.encoder_logits(pixels), logits) < TOLERANCE
    codes = dvae.encode(pixels).codes_BHW
    assert torch.equal(codes, logits.argmax(dim=1))
    one_hot = nn.functional.one_hot(codes, 8192).permute(0, 3, 1, 2).float()
    assert relative_error(dvae.code_stats(codes), their_decoder(dvae)(one_hot)) < TOLERANCE


def test_the_defaults_are_the_published_network() -> None:
    with torch.device("meta"):
        dvae = Dvae(DvaeConfig())
        encoder = dall_e.Encoder(device=torch.device("meta"))
        decoder = dall_e.Decoder(device=torch.device("meta"))
        grids = [dvae.encoder_logits(torch.empty(1, 3, s, s)).shape for s in (128, 256, 512)]
    for ours, theirs, count in (
        (dvae.encoder, encoder, 53_786_240),
        (dvae.decoder, decoder, 43_829_766),
    ):
        shapes = {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()}
        assert shapes == {name: tuple(t.shape) for name, t in theirs.state_dict().items()}
        assert sum(parameter.numel() for parameter in ours.parameters()) == count
    assert grids == [(1, 8192, 16, 16), (1, 8192, 32, 32), (1, 8192, 64, 64)]


def test_pixel_mapping_equals_the_published_one() -> None:
    pixels = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    assert torch.equal(map_pixels(pixels), dall_e.map_pixels(pixels))
    outside = pixels * 1.4 - 0.2
    torch.testing.assert_close(unmap_pixels(outside), dall_e.unmap_pixels(outside))
