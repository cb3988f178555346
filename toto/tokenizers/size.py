"""Parameters of the convolutional tokenizers, by arithmetic on their Configs. No torch here."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toto.tokenizers.config import DvaeConfig, VqganConfig

__all__ = ["dvae_params", "vqgan_params"]


def dvae_params(config: DvaeConfig) -> int:
    """Encoder and decoder: four groups of residual blocks each, between two convolutions."""
    widths = [config.width * 2**group for group in range(4)]
    encoder = _conv(3, widths[0], 7) + _conv(widths[-1], config.num_codes, 1)
    decoder = _conv(config.num_codes, config.decoder_stem, 1) + _conv(widths[0], 6, 1)
    for n_in, n_out in pairwise([widths[0], *widths]):
        encoder += _dvae_group(n_in, n_out, config.blocks_per_group, kernels=(3, 3, 3, 1))
    for n_in, n_out in pairwise([config.decoder_stem, *reversed(widths)]):
        decoder += _dvae_group(n_in, n_out, config.blocks_per_group, kernels=(1, 3, 3, 3))
    return encoder + decoder


def vqgan_params(config: VqganConfig) -> int:
    """Encoder, decoder, the convolutions around the codebook, and the codebook."""
    widths = [config.width * times for times in config.width_multipliers]
    lowest = widths[-1]
    middle = 2 * _residual(lowest, lowest) + _attention(lowest)
    encoder = _conv(3, config.width, 3) + _norm(lowest) + _conv(lowest, config.latent_dim, 3)
    decoder = _conv(config.latent_dim, lowest, 3) + _norm(widths[0]) + _conv(widths[0], 3, 3)
    for level, (n_in, n_out) in enumerate(pairwise([config.width, *widths])):
        attends, resamples = level in config.attention_levels, level < len(widths) - 1
        sizes = [n_in, *[n_out] * config.blocks_per_level]
        encoder += _level(sizes, attends=attends, resamples=resamples)
    for level, (n_out, n_in) in enumerate(pairwise([*widths, lowest])):
        sizes = [n_in, *[n_out] * (config.blocks_per_level + 1)]
        decoder += _level(sizes, attends=level in config.attention_levels, resamples=level > 0)
    codes = _conv(config.latent_dim, config.code_dim, 1) + _conv(
        config.code_dim, config.latent_dim, 1
    )
    return encoder + decoder + 2 * middle + codes + config.num_codes * config.code_dim


def _conv(n_in: int, n_out: int, kernel: int) -> int:
    return n_in * n_out * kernel**2 + n_out


def _norm(width: int) -> int:
    return 2 * width


def _dvae_group(n_in: int, n_out: int, blocks: int, *, kernels: Sequence[int]) -> int:
    return _dvae_block(n_in, n_out, kernels) + (blocks - 1) * _dvae_block(n_out, n_out, kernels)


def _dvae_block(n_in: int, n_out: int, kernels: Sequence[int]) -> int:
    hidden = n_out // 4
    path = zip(pairwise([n_in, hidden, hidden, hidden, n_out]), kernels, strict=True)
    shortcut = _conv(n_in, n_out, 1) if n_in != n_out else 0
    return sum(_conv(*sizes, kernel) for sizes, kernel in path) + shortcut


def _residual(n_in: int, n_out: int) -> int:
    shortcut = _conv(n_in, n_out, 1) if n_in != n_out else 0
    return _norm(n_in) + _conv(n_in, n_out, 3) + _norm(n_out) + _conv(n_out, n_out, 3) + shortcut


def _attention(width: int) -> int:
    return _norm(width) + 4 * _conv(width, width, 1)


def _level(sizes: Sequence[int], *, attends: bool, resamples: bool) -> int:
    blocks = sum(_residual(*pair) for pair in pairwise(sizes))
    attention = len(sizes[1:]) * _attention(sizes[-1]) if attends else 0
    return blocks + attention + (_conv(sizes[-1], sizes[-1], 3) if resamples else 0)
