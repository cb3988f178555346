"""The contracts, as checks that every component must pass: toto's own and yours.

`toto check tokenizer NAME` runs them from the shell. Each check raises ContractError with what was
expected and what came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from toto.backbones.config import MaskConfig
from toto.errors import UserError
from toto.sequence import SequenceLayout
from toto.tokenizers.base import PatchGrid, TokenGrid, Tokenizer

if TYPE_CHECKING:
    from toto.backbones.base import Backbone
    from toto.backbones.config import BackboneConfig
    from toto.heads.config import HeadConfig
    from toto.tokenizers.config import TokenizerConfig

__all__ = [
    "TEST_RESOLUTION",
    "ContractError",
    "check_backbone",
    "check_head",
    "check_tokenizer",
]

TEST_RESOLUTION = 64
"""Side in pixels of the pictures that tokenizers are checked with, unless another is given."""

# What rounding does to an output that should stay is below; fresh weights move others by 1e-2.
MOVED = 1e-5


class ContractError(UserError):
    """A component that does not keep its contract."""


def check_tokenizer(config: TokenizerConfig, *, resolution: int = TEST_RESOLUTION) -> list[str]:
    """Check shapes, dtypes, ranges, determinism, independence of frames, and the round trip.

    Args:
        config: with weights, real or random.
        resolution: side of the test pictures; must suit `config.grid`.

    Returns:
        What was checked, a line each.

    Raises:
        ContractError: the first breach.
    """
    height, width = _token_grid(config, resolution)
    if config.missing_weights:
        raise ContractError(f"no weights to check. {config.missing_weights}")
    tokenizer = config.build()
    _expect(
        isinstance(tokenizer, Tokenizer), f"build gives a Tokenizer, not {_type_name(tokenizer)}"
    )
    tokenizer.eval()
    loose = _loose_tensors(tokenizer)
    _expect(
        not loose,
        "tensors are parameters or buffers (register_buffer), so that .to(device) and "
        f"fingerprint() see them; {', '.join(loose)} is neither",
    )
    pixels_BCHW = _pictures(resolution)
    with torch.no_grad():
        grid = tokenizer.encode(pixels_BCHW)
        tokens = _tokens(config, grid)
        again = _tokens(config, tokenizer.encode(pixels_BCHW))
        alone = _tokens(config, tokenizer.encode(pixels_BCHW[1:2]))
        decoded_BCHW = tokenizer.decode(grid)
    shape = [len(pixels_BCHW), height, width]
    _expect(
        list(tokens.shape[:3]) == shape,
        f"tokens are {shape}, as grid({resolution}) says, not {list(tokens.shape[:3])}",
    )
    _expect(torch.equal(tokens, again), "encode gives the same tokens twice")
    same = (tokens[1:2] == alone).float().mean().item()
    _expect(same > 0.999, f"a picture's tokens do not depend on its batch ({same:.2%} agree)")
    _check_decoded(config, decoded_BCHW, pixels_BCHW)
    _expect(
        tokenizer.fingerprint() == config.build().fingerprint(),
        "built twice, the fingerprint is the same",
    )
    return [
        f"encode: {config.output} [B, {height}, {width}] at {resolution} px",
        "deterministic, and independent of the batch around a picture",
        "decode: pixels of the same size in [0, 1]",
        "fingerprint: stable",
    ]


def check_backbone(config: BackboneConfig, *, length: int = 24) -> list[str]:
    """Check shapes, the parameter count, roles, layers, causality, masks, cache and gradients.

    Args:
        config: of any size; small is quick.
        length: L of the test sequences.

    Returns:
        What was checked, a line each.

    Raises:
        ContractError: the first breach.
    """
    torch.manual_seed(0)
    backbone = config.build().eval()
    real = sum(parameter.numel() for parameter in backbone.parameters())
    _expect(real == config.num_params(), f"num_params() says {config.num_params()}, it has {real}")
    names, roles = {name for name, _ in backbone.named_parameters()}, backbone.param_roles()
    _expect(
        names == set(roles), f"param_roles() names every parameter; differs: {names ^ set(roles)}"
    )
    x_BLD = torch.randn(2, length, config.width, generator=_generator())
    changed_BLD = x_BLD.clone()
    # Not one number for all channels: a norm that takes the mean away would not see it.
    changed_BLD[:, length // 2 :] += torch.randn(config.width, generator=_generator())
    with torch.no_grad():
        out_BLD, changed_out_BLD = backbone(x_BLD), backbone(changed_BLD)
        features = backbone.features(x_BLD, [0, 1, -1])
    _expect(out_BLD.shape == x_BLD.shape, f"forward keeps [B, L, D], got {list(out_BLD.shape)}")
    before = slice(None, length // 2)
    _expect(
        torch.allclose(out_BLD[:, before], changed_out_BLD[:, before], atol=1e-5),
        "causality: a change at t must not move the output before t",
    )
    _expect(
        not torch.allclose(out_BLD[:, -1], changed_out_BLD[:, -1]),
        "the output depends on the input",
    )
    _expect(set(features) == {0, 1, -1}, f"features are keyed as asked for, not {set(features)}")
    _expect(torch.equal(features[0], x_BLD), "layer 0 is the embedding itself")
    last = backbone.features(x_BLD, [config.num_layers])[config.num_layers]
    _expect(_close(features[-1], last), "layer -1 is the last block")
    _check_masks(backbone, config)
    _check_cache(backbone, x_BLD, out_BLD)
    backbone.train()
    backbone(x_BLD).square().sum().backward()
    dead = [name for name, parameter in backbone.named_parameters() if parameter.grad is None]
    _expect(not dead, f"every parameter gets a gradient; none: {dead}")
    return [
        f"forward: [B, L, {config.width}], {real:,} parameters as num_params() says",
        "causal, layers 0..L as agreed, gradients everywhere, a role for every parameter",
        f"reads whom the masks say: {', '.join(config.masks)}",
        "step by step with a cache as in one pass",
    ]


@torch.no_grad()
def _check_masks(backbone: Backbone, config: BackboneConfig) -> None:
    """Under each mask that the config names, a change moves none but those that may read it.

    Of three frames of 2 × 2 tokens the first token of the second one is changed. Where the mask
    lets earlier positions read it, some of them must move: how far a backbone reaches is its own.
    """
    layout = SequenceLayout(3, 2, 2)
    changed = 1 + layout.tokens_per_frame
    x_BLD = torch.randn(2, layout.length, config.width, generator=_generator())
    other_BLD = x_BLD.clone()
    other_BLD[:, changed] += torch.randn(config.width, generator=_generator())
    for name in config.masks:
        mask = MaskConfig(name=name, frames=2 if name == "prefix" else None).build(layout)
        change_BLD = backbone(other_BLD, mask) - backbone(x_BLD, mask)
        moved = _numbers(change_BLD.abs().amax((0, 2)) > MOVED)
        reading = _numbers(mask.dense(0, layout.length, x_BLD.device)[:, changed])
        _expect(
            moved <= reading,
            f"under the mask {name} {sorted(moved - reading)} do not read {changed}, and move with "
            "it",
        )
        before = {number for number in reading if number < changed}
        _expect(
            not before or bool(moved & before),
            f"under the mask {name} {sorted(before)} read {changed}, and none moves with it",
        )


def _numbers(chosen_L: torch.Tensor) -> set[int]:
    return set(chosen_L.nonzero().flatten().tolist())


@torch.no_grad()
def _check_cache(backbone: Backbone, x_BLD: torch.Tensor, out_BLD: torch.Tensor) -> None:
    """A prompt at once and then position by position gives what one pass gives."""
    length = x_BLD.shape[1]
    cache = backbone.new_cache(length)
    prompt = length // 2
    parts = [backbone.extend(x_BLD[:, :prompt], cache)]
    parts += [backbone.extend(x_BLD[:, t : t + 1], cache) for t in range(prompt, length)]
    together_BLD = torch.cat(parts, dim=1)
    _expect(
        together_BLD.shape == out_BLD.shape and torch.allclose(together_BLD, out_BLD, atol=1e-4),
        "extend with a cache, a prompt and then one position at a time, gives what forward gives",
    )


def check_head(config: HeadConfig, *, width: int = 32) -> list[str]:
    """Check the shape, the parameter count, masking and gradients of a pooling head.

    Args:
        config: the head's.
        width: D of the test features.

    Returns:
        What was checked, a line each.

    Raises:
        ContractError: the first breach.
    """
    torch.manual_seed(0)
    head = config.build(width)
    real = sum(parameter.numel() for parameter in head.parameters())
    said = config.num_params(width)
    _expect(real == said, f"num_params({width}) says {said}, it has {real}")
    _expect(
        config.normalises in ("tokens", "pooled"),
        f"normalises is tokens or pooled, not {config.normalises!r}",
    )
    features_BLD = torch.randn(2, 10, width, generator=_generator(), requires_grad=True)
    pooled_BD = head(features_BLD)
    _expect(pooled_BD.shape == (2, width), f"pools to [B, D], got {list(pooled_BD.shape)}")
    valid_BL = torch.arange(10).expand(2, 10) < 6
    masked = head(features_BLD, valid_BL)
    _expect(_close(masked, head(features_BLD[:, :6])), "masked tokens take no part")
    pooled_BD.square().sum().backward()
    _expect(features_BLD.grad is not None, "gradients reach the features")
    return [f"pools [B, L, {width}] to [B, {width}], {real:,} parameters, masks, gradients"]


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
    _expect(is_pair, f"grid({resolution}) gives (H, W), not {grid!r}")
    size = config.codebook_size
    _expect(
        isinstance(size, int),
        "codebook_size is a property (neither method nor field) that gives an int, not "
        f"{_type_name(size)}",
    )
    return grid


def _pictures(resolution: int) -> torch.Tensor:
    """Two of noise, and a black and a white one, which reach the outermost codes."""
    noise = torch.rand(2, 3, resolution, resolution, generator=_generator())
    return torch.cat([noise, torch.zeros_like(noise[:1]), torch.ones_like(noise[:1])])


def _tokens(config: TokenizerConfig, grid: TokenGrid | PatchGrid) -> torch.Tensor:
    """The tokens of what `encode` gave, once they are of the kind that the config says."""
    if config.output == "codes":
        _expect(isinstance(grid, TokenGrid), f"encode gives a TokenGrid, not {_type_name(grid)}")
        assert isinstance(grid, TokenGrid)
        codes = grid.codes_BHW
        _expect(codes.dtype == torch.int64, f"codes are int64, not {codes.dtype}")
        low, high = int(codes.min()), int(codes.max())
        _expect(
            low >= 0 and high < config.codebook_size,
            f"codes lie in 0..{config.codebook_size - 1}, not {low}..{high}",
        )
        return codes
    _expect(isinstance(grid, PatchGrid), f"encode gives a PatchGrid, not {_type_name(grid)}")
    assert isinstance(grid, PatchGrid)
    dim = grid.patches_BHWC.shape[-1]
    _expect(dim == config.patch_dim, f"patches have {config.patch_dim} values, not {dim}")
    return grid.patches_BHWC


def _check_decoded(
    config: TokenizerConfig, decoded_BCHW: torch.Tensor, pixels_BCHW: torch.Tensor
) -> None:
    _expect(
        isinstance(decoded_BCHW, torch.Tensor),
        f"decode gives pixels, a Tensor, not {_type_name(decoded_BCHW)}",
    )
    _expect(
        decoded_BCHW.dtype == torch.float32, f"decoded pixels are float32, not {decoded_BCHW.dtype}"
    )
    _expect(
        decoded_BCHW.shape == pixels_BCHW.shape,
        f"decode gives {list(pixels_BCHW.shape)}, not {list(decoded_BCHW.shape)}",
    )
    if config.output == "patches":
        _expect(_close(decoded_BCHW, pixels_BCHW), "decode undoes encode, as no code is lost")
        return
    inside = bool(((decoded_BCHW >= -1e-4) & (decoded_BCHW <= 1 + 1e-4)).all())
    _expect(inside, "decoded pixels lie in [0, 1]")


def _loose_tensors(tokenizer: Tokenizer) -> list[str]:
    """Tensors that are plain attributes of a module."""
    return [
        f"{place}.{name}".lstrip(".")
        for place, module in tokenizer.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    ]


def _type_name(value: object) -> str:
    return type(value).__name__


def _close(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.allclose(first, second, atol=1e-4, rtol=1e-4)


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ContractError(f"contract broken: {what}")


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
