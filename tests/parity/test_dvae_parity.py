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
CONFIG = DvaeConfig(weights="random:0", width=32, num_codes=96, blocks_per_group=2, decoder_stem=24)


@pytest.fixture(scope="module")
def dvae() -> Dvae:
    dvae = CONFIG.build()
    assert isinstance(dvae, Dvae)
    # Biases start at zero, where a misplaced one would go unseen.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in dvae.named_parameters():
            if name.endswith(".b"):
                parameter.normal_(std=0.1, generator=generator)
    return dvae


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@torch.no_grad()
def test_encoder_logits_equal_the_published_encoder(dvae: Dvae) -> None:
    encoder = dall_e.Encoder(
        n_hid=CONFIG.width,
        n_blk_per_group=CONFIG.blocks_per_group,
        vocab_size=CONFIG.num_codes,
    )
    encoder.load_state_dict(dvae.encoder.state_dict(), strict=True)
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    theirs = encoder(dall_e.map_pixels(pixels))
    assert relative_error(dvae.encoder_logits(pixels), theirs) < TOLERANCE
    assert torch.equal(dvae.encode(pixels).codes_BHW, theirs.argmax(dim=1))


@torch.no_grad()
def test_decoder_output_equals_the_published_decoder(dvae: Dvae) -> None:
    decoder = dall_e.Decoder(
        n_init=CONFIG.decoder_stem,
        n_hid=CONFIG.width,
        n_blk_per_group=CONFIG.blocks_per_group,
        vocab_size=CONFIG.num_codes,
    )
    decoder.load_state_dict(dvae.decoder.state_dict(), strict=True)
    codes = torch.randint(CONFIG.num_codes, (2, 8, 8), generator=torch.Generator().manual_seed(3))
    one_hot = nn.functional.one_hot(codes, CONFIG.num_codes).permute(0, 3, 1, 2).float()
    theirs = decoder(one_hot)
    assert relative_error(dvae.decoder_stats(one_hot), theirs) < TOLERANCE
    assert relative_error(dvae.code_stats(codes), theirs) < TOLERANCE


def test_pixel_mapping_equals_the_published_one() -> None:
    pixels = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    assert torch.equal(map_pixels(pixels), dall_e.map_pixels(pixels))
    outside = pixels * 1.4 - 0.2
    torch.testing.assert_close(unmap_pixels(outside), dall_e.unmap_pixels(outside))
