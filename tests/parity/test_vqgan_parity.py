"""The VQGAN equals the published one, taming-transformers' modules, on the same weights."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import pytest
import torch
from torch import nn

from toto.tokenizers.config import VqganConfig
from toto.tokenizers.vqgan import Decoder, Encoder, Vqgan

REASON = "the published VQGAN is not installed: pip install --no-deps -r requirements-reference.txt"
taming_model = pytest.importorskip("taming.modules.diffusionmodules.model", reason=REASON)
taming_quantize = pytest.importorskip("taming.modules.vqvae.quantize", reason=REASON)

TOLERANCE = 1e-5
SMALL = VqganConfig(
    weights="random:0",
    num_codes=512,
    code_dim=24,
    latent_dim=40,
    width=64,
    width_multipliers=(1, 2, 1),
    attention_levels=(1, 2),
    blocks_per_level=2,
    norm_groups=32,
)


def theirs(cls: type, config: VqganConfig, resolution: int) -> nn.Module:
    """The published encoder or decoder of our sizes."""
    settings: dict[str, Any] = {
        "ch": config.width,
        "out_ch": 3,
        "ch_mult": config.width_multipliers,
        "num_res_blocks": config.blocks_per_level,
        "attn_resolutions": [resolution >> level for level in config.attention_levels],
        "in_channels": 3,
        "resolution": resolution,
        "z_channels": config.latent_dim,
        "double_z": False,
    }
    with contextlib.redirect_stdout(io.StringIO()):  # the decoder prints
        module = cls(**settings)
    assert isinstance(module, nn.Module)
    return module


@pytest.fixture(scope="module")
def vqgan() -> Vqgan:
    vqgan = SMALL.build()
    assert isinstance(vqgan, Vqgan)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        # Norms start at 1 and 0, where a misplaced one would go unseen.
        for module in vqgan.modules():
            if isinstance(module, nn.GroupNorm):
                module.weight.normal_(1.0, 0.2, generator=generator)
                module.bias.normal_(std=0.2, generator=generator)
        # Latents of random weights fill a small ball: codes where the latents are.
        z = vqgan.latents(pictures(16)).permute(0, 2, 3, 1).flatten(0, 2)
        chosen = torch.randperm(len(z), generator=generator)[: SMALL.num_codes]
        noise = torch.randn(z[chosen].shape, generator=generator) * z.std(0)
        vqgan.quantize.embedding.weight.copy_(z[chosen] + 0.3 * noise)
    return vqgan


def pictures(count: int, size: int = 32, seed: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def relative_error(ours: torch.Tensor, published: torch.Tensor) -> float:
    return ((ours - published).abs().max() / published.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 48])
def test_latents_codes_and_vectors_equal_the_published_ones(vqgan: Vqgan, size: int) -> None:
    encoder = theirs(taming_model.Encoder, SMALL, resolution=32)
    encoder.load_state_dict(vqgan.encoder.state_dict(), strict=True)
    quantize = taming_quantize.VectorQuantizer2(
        SMALL.num_codes, SMALL.code_dim, beta=0.25, sane_index_shape=True
    )
    quantize.load_state_dict(vqgan.quantize.state_dict(), strict=True)
    pixels = pictures(8, size, seed=3)
    published = vqgan.quant_conv(encoder(2 * pixels - 1))
    assert relative_error(vqgan.latents(pixels), published) < TOLERANCE
    vectors, _, (_, _, codes) = quantize(published)
    assert codes.unique().numel() > 200, "few codes: equal ids would prove little"
    found = vqgan.encode(pixels).codes_BHW
    assert torch.equal(found, codes)
    assert relative_error(vqgan.quantize.look_up(found), vectors) < TOLERANCE


@torch.no_grad()
def test_pictures_equal_the_published_decoder(vqgan: Vqgan) -> None:
    decoder = theirs(taming_model.Decoder, SMALL, resolution=32)
    decoder.load_state_dict(vqgan.decoder.state_dict(), strict=True)
    codes = torch.randint(SMALL.num_codes, (3, 8, 8), generator=torch.Generator().manual_seed(4))
    z = vqgan.post_quant_conv(vqgan.quantize.look_up(codes))
    published = decoder(z)
    assert relative_error(vqgan.decoder(z), published) < TOLERANCE


def test_gradients_equal_the_published_ones(vqgan: Vqgan) -> None:
    encoder = theirs(taming_model.Encoder, SMALL, resolution=32)
    encoder.load_state_dict(vqgan.encoder.state_dict(), strict=True)
    pixels = pictures(2)
    weight = torch.randn(2, SMALL.latent_dim, 8, 8, generator=torch.Generator().manual_seed(5))
    ours = torch.autograd.grad(
        (vqgan.encoder(pixels) * weight).sum(), list(vqgan.encoder.parameters())
    )
    published = torch.autograd.grad((encoder(pixels) * weight).sum(), list(encoder.parameters()))
    for (name, _), mine, other in zip(
        vqgan.encoder.named_parameters(), ours, published, strict=True
    ):
        # Attention's key bias has no effect: both sides give rounding noise.
        if not name.endswith("k.bias"):
            assert relative_error(mine, other) < 1e-4, name


@pytest.mark.parametrize(("ours", "name"), [(Encoder, "Encoder"), (Decoder, "Decoder")])
def test_the_defaults_are_the_published_network(ours: type, name: str) -> None:
    with torch.device("meta"):
        module = ours(VqganConfig())
        published = theirs(getattr(taming_model, name), VqganConfig(), resolution=256)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in published.state_dict().items()}
    assert shapes == wanted
