from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from toto.tokenizers import base
from toto.tokenizers.base import PatchGrid, TokenGrid
from toto.tokenizers.config import TOKENIZERS, DvaeConfig
from toto.tokenizers.dvae import Dvae, map_pixels, unmap_pixels

TINY = DvaeConfig(weights="random:0", width=8, num_codes=32, blocks_per_group=1, decoder_stem=8)


def build(config: DvaeConfig = TINY) -> Dvae:
    dvae = config.build()
    assert isinstance(dvae, Dvae)
    return dvae


def pixels(batch: int = 2, resolution: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(batch, 3, resolution, resolution, generator=generator)


def many_codes() -> Dvae:
    """Plain random weights favour one code or two, and nothing that is said of codes could fail."""
    dvae = build()
    with torch.no_grad():
        lead_V = dvae.encoder_logits(pixels(8, 64)).mean((0, 2, 3))
        dvae.encoder.get_parameter("blocks.output.conv.b").sub_(lead_V)
    assert dvae.encode(pixels(4)).codes_BHW.unique().numel() >= 16
    return dvae


def test_published_sizes() -> None:
    with torch.device("meta"):
        dvae = build(DvaeConfig())
    assert sum(p.numel() for p in dvae.encoder.parameters()) == 53_786_240
    assert sum(p.numel() for p in dvae.decoder.parameters()) == 43_829_766
    assert len(dvae.encoder.state_dict()) == 74
    assert len(dvae.decoder.state_dict()) == 76


def test_published_names_and_shapes() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in build(DvaeConfig()).state_dict().items()}
    assert shapes["encoder.blocks.input.w"] == (256, 3, 7, 7)
    assert shapes["encoder.blocks.group_1.block_1.res_path.conv_1.w"] == (64, 256, 3, 3)
    assert shapes["encoder.blocks.group_2.block_1.id_path.w"] == (512, 256, 1, 1)
    assert shapes["encoder.blocks.output.conv.w"] == (8192, 2048, 1, 1)
    assert shapes["decoder.blocks.input.w"] == (128, 8192, 1, 1)
    assert shapes["decoder.blocks.group_4.block_2.res_path.conv_4.b"] == (256,)
    assert shapes["decoder.blocks.output.conv.w"] == (6, 256, 1, 1)
    assert "encoder.blocks.group_1.block_1.id_path.w" not in shapes


@pytest.mark.parametrize("resolution", [8, 32, 64])
def test_shapes_types_and_ranges(resolution: int) -> None:
    dvae = build()
    grid = dvae.encode(pixels(3, resolution))
    assert grid.codes_BHW.shape == (3, *TINY.grid(resolution))
    assert grid.codes_BHW.dtype == torch.int64
    decoded = dvae.decode(grid)
    assert decoded.shape == (3, 3, resolution, resolution)
    assert decoded.dtype == torch.float32
    assert 0 <= decoded.min() <= decoded.max() <= 1


@pytest.mark.parametrize("blocks", [1, 2])
def test_code_lookup_equals_the_one_hot_convolution(blocks: int) -> None:
    dvae = build(TINY.model_copy(update={"blocks_per_group": blocks}))
    codes = dvae.encode(pixels()).codes_BHW
    one_hot = nn.functional.one_hot(codes, TINY.num_codes).permute(0, 3, 1, 2).float()
    gradients = []
    for stats in (dvae.code_stats(codes), dvae.decoder_stats(one_hot)):
        dvae.zero_grad()
        stats.square().sum().backward()
        gradients.append([p.grad.clone() for p in dvae.decoder.parameters() if p.grad is not None])
    torch.testing.assert_close(dvae.code_stats(codes), dvae.decoder_stats(one_hot))
    assert len(gradients[0]) == len(list(dvae.decoder.parameters()))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_pixel_mapping_is_inverted() -> None:
    x = pixels()
    torch.testing.assert_close(unmap_pixels(map_pixels(x)), x)
    assert map_pixels(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0.1, 0.9])


def test_frames_are_independent_and_encoding_is_repeatable() -> None:
    dvae, x = many_codes(), pixels(4)
    codes = dvae.encode(x).codes_BHW
    assert torch.equal(codes, dvae.encode(x).codes_BHW)
    assert torch.equal(codes[2:3], dvae.encode(x[2:3]).codes_BHW)


def test_codes_and_pictures_do_not_depend_on_autocast() -> None:
    dvae, x = many_codes(), pixels(4, 64)
    plain = dvae.encode(x)
    decoded = dvae.decode(plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(dvae.encoder_logits(x).argmax(dim=1), plain.codes_BHW)
        assert torch.equal(dvae.encode(x).codes_BHW, plain.codes_BHW)
        assert torch.equal(dvae.decode(plain), decoded)


def test_random_weights_follow_the_seed_and_leave_the_global_generator() -> None:
    state = torch.get_rng_state()
    first, again = build(), build()
    other = build(TINY.model_copy(update={"weights": "random:1"}))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_untrained_weights_come_from_the_global_generator() -> None:
    config = TINY.model_copy(update={"weights": None})
    torch.manual_seed(0)
    first = build(config).fingerprint()
    assert build(config).fingerprint() != first
    torch.manual_seed(0)
    assert build(config).fingerprint() == first


def test_initial_deviation_is_one_over_root_fan_in() -> None:
    stem = build(TINY.model_copy(update={"width": 64})).encoder.blocks.get_submodule("input")
    w, b = stem.state_dict()["w"], stem.state_dict()["b"]
    assert w.std().item() == pytest.approx((3 * 49) ** -0.5, rel=0.05)
    assert not b.any()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(3, 32, 32), "B×3×R×R"),
        (torch.zeros(1, 1, 32, 32), "B×3×R×R"),
        (torch.zeros(1, 3, 32, 40), "B×3×R×R"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "uint8"),
        (torch.zeros(1, 3, 36, 36), "36 px is no multiple of 8 px"),
    ],
)
def test_encode_refuses_other_pixels(bad: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build().encode(bad)


def test_decode_refuses_patches() -> None:
    empty = torch.zeros(1, 1, 1, 1)
    with pytest.raises(TypeError, match="TokenGrid, not a PatchGrid"):
        build().decode(PatchGrid(empty, empty, empty))


def test_decode_of_every_code_is_finite() -> None:
    codes = torch.arange(TINY.num_codes).view(1, 4, 8)
    assert build().decode(TokenGrid(codes)).isfinite().all()


@pytest.mark.parametrize(
    "weights", ["dvae-tiny", "random:", "random:x", f"random:{10**23}", "toto:", "w.pt"]
)
def test_config_refuses_what_names_no_weights(weights: str) -> None:
    with pytest.raises(ValidationError, match=r"toto:NAME, random:SEED .* or the path"):
        TOKENIZERS.get("dvae").model_validate({"weights": weights})


def test_config_refuses_a_width_that_does_not_divide_by_four() -> None:
    with pytest.raises(ValidationError, match="multiple of 4"):
        DvaeConfig(width=30)


def test_pieces_of_a_batch_have_the_codes_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    dvae = many_codes().eval()
    whole = dvae.encode(pixels(5)).codes_BHW
    monkeypatch.setattr(base, "CPU_PIXELS", 2 * 32 * 32)
    assert torch.equal(dvae.encode(pixels(5)).codes_BHW, whole)
