"""The discrete VAE of DALL-E (Ramesh et al. 2021, arXiv 2102.12092; github openai/DALL-E).

Names and shapes of the parameters are the official ones (`blocks.group_1.block_1.res_path.
conv_1.w`), below `encoder.` and `decoder.`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from toto.tokenizers.base import PatchGrid, TokenGrid, Tokenizer, full_precision, pieces
from toto.tokenizers.weights import load_weights, random_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toto.tokenizers.config import DvaeConfig

__all__ = ["PIXEL_MARGIN", "Dvae", "map_pixels", "unmap_pixels"]

PIXEL_MARGIN = 0.1
"""ε: pixels are squeezed into (ε, 1-ε), where the logit-Laplace density is finite."""

NUM_GROUPS = 4


def map_pixels(pixels: Tensor) -> Tensor:
    """[0, 1] → [ε, 1-ε]."""
    return (1 - 2 * PIXEL_MARGIN) * pixels + PIXEL_MARGIN


def unmap_pixels(mapped: Tensor) -> Tensor:
    """The inverse of `map_pixels`, clamped to [0, 1]."""
    return ((mapped - PIXEL_MARGIN) / (1 - 2 * PIXEL_MARGIN)).clamp(0, 1)


class Conv2d(nn.Module):
    """A convolution of odd kernel size that keeps height and width; `w` OIHW and `b` O."""

    def __init__(self, n_in: int, n_out: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(n_out, n_in, kernel, kernel))
        self.b = nn.Parameter(torch.empty(n_out))

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Draw w from N(0, 1 / fan-in) and set b to 0."""
        nn.init.normal_(self.w, std=1 / math.sqrt(self.w[0].numel()), generator=generator)
        nn.init.zeros_(self.b)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """`BCHW` → `BCHW`, with n_out channels."""
        return nn.functional.conv2d(x_BCHW, self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    """A residual block: ReLU and convolution four times at a quarter of the width."""

    def __init__(self, n_in: int, n_out: int, kernels: Sequence[int], post_gain: float) -> None:
        super().__init__()
        hidden = n_out // 4
        sizes = [n_in, hidden, hidden, hidden, n_out]
        self.post_gain = post_gain
        self.id_path = Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        path: OrderedDict[str, nn.Module] = OrderedDict()
        for i, kernel in enumerate(kernels):
            path[f"relu_{i + 1}"] = nn.ReLU()
            path[f"conv_{i + 1}"] = Conv2d(sizes[i], sizes[i + 1], kernel)
        self.res_path = nn.Sequential(path)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """`BCHW` → `BCHW`, with n_out channels."""
        sum_BCHW: Tensor = self.id_path(x_BCHW) + self.post_gain * self.res_path(x_BCHW)
        return sum_BCHW


def _group(
    n_in: int, n_out: int, num_blocks: int, kernels: Sequence[int]
) -> OrderedDict[str, nn.Module]:
    post_gain = 1 / (NUM_GROUPS * num_blocks) ** 2
    return OrderedDict(
        (f"block_{i + 1}", Block(n_in if i == 0 else n_out, n_out, kernels, post_gain))
        for i in range(num_blocks)
    )


def _output(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv2d(n_in, n_out, 1)))


class Encoder(nn.Module):
    """Mapped pixels `B3HW` → logits of the codes at an eighth of height and width, `BVHW`."""

    def __init__(self, config: DvaeConfig) -> None:
        super().__init__()
        widths = [config.width * 2**i for i in range(NUM_GROUPS)]
        blocks: OrderedDict[str, nn.Module] = OrderedDict(input=Conv2d(3, widths[0], 7))
        for i, (n_in, n_out) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            group = _group(n_in, n_out, config.blocks_per_group, kernels=(3, 3, 3, 1))
            if i < NUM_GROUPS - 1:
                group["pool"] = nn.MaxPool2d(2)
            blocks[f"group_{i + 1}"] = nn.Sequential(group)
        blocks["output"] = _output(widths[-1], config.num_codes)
        self.blocks = nn.Sequential(blocks)

    def forward(self, mapped_BCHW: Tensor) -> Tensor:
        """Logits `BVHW`."""
        logits_BVHW: Tensor = self.blocks(mapped_BCHW)
        return logits_BVHW


class Decoder(nn.Module):
    """One-hot or relaxed codes `BVHW` → 6 channels at 8 times height and width: μ and ln b."""

    def __init__(self, config: DvaeConfig) -> None:
        super().__init__()
        widths = [config.width * 2**i for i in reversed(range(NUM_GROUPS))]
        stem = config.decoder_stem
        blocks: OrderedDict[str, nn.Module] = OrderedDict(input=Conv2d(config.num_codes, stem, 1))
        for i, (n_in, n_out) in enumerate(zip([stem, *widths], widths, strict=False)):
            group = _group(n_in, n_out, config.blocks_per_group, kernels=(1, 3, 3, 3))
            if i < NUM_GROUPS - 1:
                group["upsample"] = nn.Upsample(scale_factor=2, mode="nearest")
            blocks[f"group_{i + 1}"] = nn.Sequential(group)
        blocks["output"] = _output(widths[-1], 6)
        self.blocks = nn.Sequential(blocks)

    def forward(self, z_BVHW: Tensor) -> Tensor:
        """μ and ln b of the mapped pixels' logits, `B6HW`."""
        stats_BCHW: Tensor = self.blocks(z_BVHW)
        return stats_BCHW

    def from_codes(self, codes_BHW: Tensor) -> Tensor:
        """`forward` of the codes' one-hot maps without making them: columns of the 1×1 conv."""
        stem = self.blocks.get_submodule("input")
        assert isinstance(stem, Conv2d)
        stem_BHWC = nn.functional.embedding(codes_BHW, stem.w.flatten(1).T) + stem.b
        stats_BCHW: Tensor = self.blocks[1:](stem_BHWC.permute(0, 3, 1, 2))
        return stats_BCHW


class Dvae(Tokenizer):
    """The dVAE: a token is one of V codes and stands for 8 × 8 pixels.

    Args:
        config: sizes, and where the weights are; without `weights` they are freshly drawn from
            torch's global generator, which `random:SEED` leaves untouched.

    Raises:
        UserError: the weights are missing or are not this tokenizer's.
    """

    config: DvaeConfig

    def __init__(self, config: DvaeConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        seed = random_seed(config.weights)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        if config.weights is None or generator is not None:
            self.reset_parameters(generator)
        else:
            load_weights(self, config.weights)
        # Channels in the last dimension: convolutions and the argmax over codes run faster on CPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew, as the published network does."""
        for module in self.modules():
            if isinstance(module, Conv2d):
                module.reset_parameters(generator)

    def encoder_logits(self, pixels_BCHW: Tensor) -> Tensor:
        """Logits of the codes, `BVHW`, of pixels in [0, 1]."""
        logits_BVHW: Tensor = self.encoder(map_pixels(pixels_BCHW))
        return logits_BVHW

    def decoder_stats(self, z_BVHW: Tensor) -> Tensor:
        """`B6HW`: μ (3 channels) and ln b (3) of the logit-Laplace density of mapped pixels."""
        stats_BCHW: Tensor = self.decoder(z_BVHW)
        return stats_BCHW

    def code_stats(self, codes_BHW: Tensor) -> Tensor:
        """`decoder_stats` of the one-hot maps of the codes, by look-up."""
        return self.decoder.from_codes(codes_BHW)

    @torch.no_grad()
    def encode(self, pixels_BCHW: Tensor) -> TokenGrid:
        """The most likely code of every 8 × 8 pixels, without noise.

        Always in float32, inside autocast too: the codes must not depend on who asks.
        """
        self.check_pixels(pixels_BCHW)
        with full_precision(pixels_BCHW.device):
            codes = [self.encoder_logits(part).argmax(dim=1) for part in pieces(pixels_BCHW)]
            return TokenGrid(torch.cat(codes))

    @torch.no_grad()
    def decode(self, grid: TokenGrid | PatchGrid) -> Tensor:
        """The median picture of the decoded density, `BCHW` in [0, 1]."""
        if not isinstance(grid, TokenGrid):
            raise TypeError(f"a dvae decodes a TokenGrid, not a {type(grid).__name__}")
        with full_precision(grid.codes_BHW.device):
            return reconstruction(self.code_stats(grid.codes_BHW))


def reconstruction(stats_BCHW: Tensor) -> Tensor:
    """The picture of `decoder_stats`: pixels `B3HW` in [0, 1]."""
    return unmap_pixels(torch.sigmoid(stats_BCHW[:, :3]))
