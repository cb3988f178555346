"""GPT-2 (Radford et al. 2019) with fixed sine-cosine positions, as the paper has it (Table 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from toto.backbones.stack import AttentionBlock, BlockStack, Context, hidden_std, residual_std
from toto.layers.attention import SelfAttention
from toto.layers.mlp import GeluMlp

if TYPE_CHECKING:
    from toto.backbones.config import Gpt2Config
    from toto.layers.masks import Mask

__all__ = ["Gpt2", "Gpt2Block", "sine_cosine_positions"]

LONGEST_WAVE = 10_000.0


class Gpt2Block(AttentionBlock):
    """LayerNorm, attention and a GELU MLP, with biases."""

    def __init__(self, config: Gpt2Config) -> None:
        super().__init__()
        width = config.width
        self.attention_norm = nn.LayerNorm(width, config.norm_eps)
        self.attention = SelfAttention(
            width,
            config.num_heads,
            config.num_heads,
            bias=True,
            mup=config.mup_base_width is not None,
        )
        self.mlp_norm = nn.LayerNorm(width, config.norm_eps)
        self.mlp = GeluMlp(width, config.ffn_dim)
        for linear, std in (
            (self.attention.query_key_value, hidden_std(config)),
            (self.attention.output, residual_std(config)),
            (self.mlp.up, hidden_std(config)),
            (self.mlp.down, residual_std(config)),
        ):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)


class Gpt2(BlockStack):
    """Pre-norm LayerNorm, GELU, biases, no dropout; positions are added to the embedding.

    Weights as GPT-2's: N(0, 0.02²), those that write to the residual stream N(0, 0.02² / 2L).
    """

    config: Gpt2Config

    def __init__(self, config: Gpt2Config) -> None:
        blocks = [Gpt2Block(config) for _ in range(config.num_layers)]
        super().__init__(config, blocks, nn.LayerNorm(config.width, config.norm_eps))

    def enter(self, x_BLD: Tensor, first: int, mask: Mask) -> tuple[Tensor, Context]:
        """See `BlockStack.enter`."""
        length = first + x_BLD.shape[1]
        positions_LD = sine_cosine_positions(length, self.config.width, x_BLD.device)[first:]
        placed_BLD = x_BLD + self.config.position_scale * positions_LD
        return placed_BLD, Context(self.visibility(mask, first, length, x_BLD.device))


def sine_cosine_positions(length: int, width: int, device: torch.device) -> Tensor:
    """`LD`, fp32: sines in the first half, cosines in the second (Vaswani et al. 2017).

    Channel i of either half turns by `10000^(-2i/D)` radians a position.
    """
    exponents_P = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
    positions_L = torch.arange(length, dtype=torch.float32, device=device)
    angles_LP = positions_L[:, None] * (1.0 / LONGEST_WAVE**exponents_P)
    return torch.cat((angles_LP.sin(), angles_LP.cos()), dim=-1)
