"""The VQGAN: sizes, codes, pictures, and what its config refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from toto.tokenizers import base
from toto.tokenizers import codebook as codebook_module
from toto.tokenizers.base import PatchGrid
from toto.tokenizers.codebook import Codebook
from toto.tokenizers.config import TOKENIZERS, VqganConfig
from toto.tokenizers.vqgan import Decoder, Encoder, Vqgan
from toto.tokenizers.weights import save_weights

TINY: dict[str, Any] = {
    "num_codes": 64,
    "code_dim": 8,
    "latent_dim": 12,
    "width": 8,
    "width_multipliers": (1, 2),
    "attention_levels": (1,),
    "blocks_per_level": 1,
    "norm_groups": 4,
}


def tiny(**changes: Any) -> Vqgan:
    vqgan = VqganConfig(**({"weights": "random:0"} | TINY | changes)).build()
    assert isinstance(vqgan, Vqgan)
    return vqgan


def pictures(count: int, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_published_sizes() -> None:
    with torch.device("meta"):
        encoder, decoder = Encoder(VqganConfig()), Decoder(VqganConfig())
    assert sum(p.numel() for p in encoder.parameters()) == 29_298_176
    assert sum(p.numel() for p in decoder.parameters()) == 42_449_795
    assert VqganConfig().grid(256) == (16, 16)
    assert VqganConfig().codebook_size == 16384


def test_encode_takes_the_nearest_code_and_decode_a_picture_of_the_same_size() -> None:
    vqgan = tiny()
    pixels = pictures(3)
    codes = vqgan.encode(pixels).codes_BHW
    assert codes.shape == (3, 8, 8)
    with torch.no_grad():
        z = vqgan.latents(pixels).permute(0, 2, 3, 1)[..., None, :]
        distance = (z - vqgan.quantize.embedding.weight).square().sum(-1)
    assert torch.equal(codes, distance.argmin(-1))
    picture = vqgan.decode(vqgan.encode(pixels))
    assert picture.shape == pixels.shape
    assert 0 <= picture.min() <= picture.max() <= 1


def test_codes_do_not_depend_on_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    vqgan, pixels = tiny(), pictures(5)
    whole = vqgan.encode(pixels).codes_BHW
    monkeypatch.setattr(base, "CPU_PIXELS", 2 * 16 * 16)
    monkeypatch.setattr(codebook_module, "DISTANCES", 3 * 64)
    assert torch.equal(vqgan.encode(pixels).codes_BHW, whole)


def test_of_equally_near_codes_the_lowest_is_taken() -> None:
    codebook = Codebook(4, 2)
    with torch.no_grad():
        codebook.embedding.weight.copy_(torch.tensor([[9.0, 9.0], [1, 0], [1, 0], [0, 1]]))
    z = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).T.reshape(1, 2, 1, 2)
    assert codebook.nearest(z).tolist() == [[[1, 1]]]


def test_codes_are_the_same_inside_autocast() -> None:
    vqgan, pixels = tiny(), pictures(2)
    plain = vqgan.encode(pixels).codes_BHW
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vqgan.encode(pixels).codes_BHW, plain)


def test_random_weights_are_named_by_their_seed() -> None:
    torch.manual_seed(1)
    first = tiny()
    torch.manual_seed(2)
    assert first.fingerprint() == tiny().fingerprint()
    assert first.fingerprint() != tiny(weights="random:1").fingerprint()


def test_weights_are_written_and_read_back(tmp_path: Any) -> None:
    vqgan = tiny()
    save_weights(vqgan, tmp_path / "vqgan.safetensors")
    again = tiny(weights=str(tmp_path / "vqgan.safetensors"))
    assert again.fingerprint() == vqgan.fingerprint()


def test_patches_are_refused() -> None:
    with pytest.raises(TypeError, match="decodes a TokenGrid"):
        tiny().decode(PatchGrid(*[torch.zeros(1, 2, 2, 1)] * 3))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("attention_levels", [2], "levels are 0 to 1"),
        ("norm_groups", 3, "does not divide 8 channels"),
        ("weights", "nowhere", "names no weights"),
    ],
)
def test_config_refuses(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TOKENIZERS.parse({"name": "vqgan", **TINY, field: value})


def test_a_resolution_that_is_no_multiple_is_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of 16 px per token; 128 is"):
        VqganConfig().grid(130)
