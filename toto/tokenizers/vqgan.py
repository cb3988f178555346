"""VQGAN (Esser et al. 2021, arXiv 2012.09841; github CompVis/taming-transformers).

Names and shapes of the parameters are the official ones: `encoder.down.0.block.0.conv1.weight`,
`quantize.embedding.weight`, `quant_conv.weight`.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from toto.tokenizers.base import PatchGrid, TokenGrid, Tokenizer, full_precision, pieces
from toto.tokenizers.codebook import Codebook
from toto.tokenizers.weights import load_weights, random_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toto.tokenizers.config import VqganConfig

__all__ = ["Vqgan"]

NORM_EPS = 1e-6


class ResidualBlock(nn.Module):
    """GroupNorm, swish and a 3×3 convolution, twice; a 1×1 convolution where the width changes."""

    def __init__(self, n_in: int, n_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, n_in, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, n_out, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        if n_in != n_out:
            self.nin_shortcut: nn.Module = nn.Conv2d(n_in, n_out, 1)
        else:
            self.nin_shortcut = nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """`BCHW` → `BCHW`, with n_out channels."""
        hidden_BCHW = self.conv1(nn.functional.silu(self.norm1(x_BCHW)))
        hidden_BCHW = self.conv2(nn.functional.silu(self.norm2(hidden_BCHW)))
        sum_BCHW: Tensor = self.nin_shortcut(x_BCHW) + hidden_BCHW
        return sum_BCHW


class AttentionBlock(nn.Module):
    """Attention of every position to every other, in one head, beside a shortcut."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=NORM_EPS)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """`BCHW` → `BCHW`."""
        normed_BCHW = self.norm(x_BCHW)
        q, k, v = (
            layer(normed_BCHW).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        mixed_BLC = nn.functional.scaled_dot_product_attention(q, k, v)
        mixed_BCHW = mixed_BLC.transpose(1, 2).reshape(x_BCHW.shape)
        sum_BCHW: Tensor = x_BCHW + self.proj_out(mixed_BCHW)
        return sum_BCHW


class Downsample(nn.Module):
    """Half the height and width, by a convolution of stride 2 padded right and below."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """`BCHW` → `BCHW`."""
        half_BCHW: Tensor = self.conv(nn.functional.pad(x_BCHW, (0, 1, 0, 1)))
        return half_BCHW


class Upsample(nn.Module):
    """Twice the height and width: the nearest pixel, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """`BCHW` → `BCHW`."""
        twice_BCHW: Tensor = self.conv(nn.functional.interpolate(x_BCHW, scale_factor=2.0))
        return twice_BCHW


class Level(nn.Module):
    """The residual blocks of one resolution, each with attention behind it where `attends`.

    `resample` changes the resolution at the end, and has an official name for each direction.
    """

    def __init__(
        self, widths: Sequence[int], *, attends: bool, groups: int, resample: dict[str, nn.Module]
    ) -> None:
        super().__init__()
        pairs = pairwise(widths)
        self.block = nn.ModuleList(ResidualBlock(*pair, groups) for pair in pairs)
        self.attn = nn.ModuleList(AttentionBlock(w, groups) for w in widths[1:] if attends)
        for name, module in resample.items():
            self.add_module(name, module)
        self._resample = tuple(resample)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """`BCHW` → `BCHW`, with the last of `widths` channels."""
        attention = self.attn if len(self.attn) else [nn.Identity()] * len(self.block)
        for block, attend in zip(self.block, attention, strict=True):
            x_BCHW = attend(block(x_BCHW))
        for name in self._resample:
            x_BCHW = self.get_submodule(name)(x_BCHW)
        return x_BCHW


class Middle(nn.Module):
    """A residual block, attention, and a residual block, at the lowest resolution."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width, groups)
        self.attn_1 = AttentionBlock(width, groups)
        self.block_2 = ResidualBlock(width, width, groups)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """`BCHW` → `BCHW`."""
        mixed_BCHW: Tensor = self.block_2(self.attn_1(self.block_1(x_BCHW)))
        return mixed_BCHW


class Encoder(nn.Module):
    """Pixels in [-1, 1], `B3HW` → latents `BCHW` at 1/f of height and width."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        widths = [config.width * times for times in config.width_multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.width, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                [n_in, *[n_out] * config.blocks_per_level],
                attends=level in config.attention_levels,
                groups=config.norm_groups,
                resample={} if level == last else {"downsample": Downsample(n_out)},
            )
            for level, (n_in, n_out) in enumerate(pairwise([config.width, *widths]))
        )
        self.mid = Middle(widths[-1], config.norm_groups)
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.latent_dim, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Latents `BCHW`."""
        x_BCHW = self.conv_in(x_BCHW)
        for level in self.down:
            x_BCHW = level(x_BCHW)
        latent_BCHW: Tensor = self.conv_out(nn.functional.silu(self.norm_out(self.mid(x_BCHW))))
        return latent_BCHW


class Decoder(nn.Module):
    """Latents `BCHW` → pixels `B3HW`, about [-1, 1], at f times height and width."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        widths = [config.width * times for times in config.width_multipliers]
        self.conv_in = nn.Conv2d(config.latent_dim, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.norm_groups)
        # Numbered as the encoder's levels are, so that the last comes first.
        self.up = nn.ModuleList(
            Level(
                [n_in, *[n_out] * (config.blocks_per_level + 1)],
                attends=level in config.attention_levels,
                groups=config.norm_groups,
                resample={} if level == 0 else {"upsample": Upsample(n_out)},
            )
            for level, (n_out, n_in) in enumerate(pairwise([*widths, widths[-1]]))
        )
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[0], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latent_BCHW: Tensor) -> Tensor:
        """Pixels `B3HW`."""
        x_BCHW = self.mid(self.conv_in(latent_BCHW))
        for level in reversed(self.up):
            x_BCHW = level(x_BCHW)
        pixels_BCHW: Tensor = self.conv_out(nn.functional.silu(self.norm_out(x_BCHW)))
        return pixels_BCHW


class Vqgan(Tokenizer):
    """The autoencoder of VQGAN: a token is the nearest of V vectors and stands for f × f pixels.

    Args:
        config: sizes, and where the weights are; without `weights` they are freshly drawn from
            torch's global generator, which `random:SEED` leaves untouched.

    Raises:
        UserError: the weights are missing or are not this tokenizer's.
    """

    config: VqganConfig

    def __init__(self, config: VqganConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Codebook(config.num_codes, config.code_dim)
        self.quant_conv = nn.Conv2d(config.latent_dim, config.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.latent_dim, 1)
        seed = random_seed(config.weights)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        if config.weights is None or generator is not None:
            self.reset_parameters(generator)
        else:
            load_weights(self, config.weights)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew: torch's own distribution for convolutions, as published."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # kaiming_uniform with a = √5 is U(-1/√fan-in, 1/√fan-in), as for the bias.
                bound = 1 / math.sqrt(module.weight[0].numel())
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                assert module.bias is not None
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        self.quantize.reset_parameters(generator)

    def latents(self, pixels_BCHW: Tensor) -> Tensor:
        """What is quantized, `BCHW`, of pixels in [0, 1]."""
        z_BCHW: Tensor = self.quant_conv(self.encoder(2 * pixels_BCHW - 1))
        return z_BCHW

    def decoded(self, quantized_BCHW: Tensor) -> Tensor:
        """Pixels of code vectors `BCHW`: about [0, 1], not clamped."""
        pixels_BCHW: Tensor = self.decoder(self.post_quant_conv(quantized_BCHW))
        return (pixels_BCHW + 1) / 2

    @torch.no_grad()
    def encode(self, pixels_BCHW: Tensor) -> TokenGrid:
        """The nearest code of every f × f pixels; in float32, whoever asks."""
        self.check_pixels(pixels_BCHW)
        with full_precision(pixels_BCHW.device):
            codes = [self.quantize.nearest(self.latents(part)) for part in pieces(pixels_BCHW)]
            return TokenGrid(torch.cat(codes))

    @torch.no_grad()
    def decode(self, grid: TokenGrid | PatchGrid) -> Tensor:
        """The decoder's picture of the codes, `BCHW` in [0, 1]."""
        if not isinstance(grid, TokenGrid):
            raise TypeError(f"a vqgan decodes a TokenGrid, not a {type(grid).__name__}")
        with full_precision(grid.codes_BHW.device):
            return self.decoded(self.quantize.look_up(grid.codes_BHW)).clamp(0, 1)
