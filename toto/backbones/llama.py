"""LLaMA (Touvron et al. 2023), the paper's backbone (§3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from toto.backbones.stack import AttentionBlock, BlockStack, Context, hidden_std, residual_std
from toto.layers.attention import SelfAttention
from toto.layers.mlp import SwiGLU
from toto.layers.norm import RMSNorm
from toto.layers.rope import rope_rotation

if TYPE_CHECKING:
    from toto.backbones.config import LlamaConfig
    from toto.layers.masks import Mask

__all__ = ["Llama", "LlamaBlock"]


class LlamaBlock(AttentionBlock):
    """RMSNorm, rotary attention and SwiGLU, without biases."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = SelfAttention(
            config.width,
            config.num_heads,
            config.num_kv_heads,
            bias=False,
            mup=config.mup_base_width is not None,
        )
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config.width, config.ffn_dim)
        for linear, std in (
            (self.attention.query_key_value, hidden_std(config)),
            (self.attention.output, residual_std(config)),
            (self.mlp.gate_up, hidden_std(config)),
            (self.mlp.down, residual_std(config)),
        ):
            nn.init.normal_(linear.weight, std=std)


class Llama(BlockStack):
    """Pre-norm RMSNorm, SwiGLU, half-split RoPE over the raster sequence, no biases, no dropout.

    Weights are drawn from N(0, 0.02²), those that write to the residual stream from
    N(0, 0.02² / 2L) (Radford et al. 2019), so that its variance does not grow with depth.
    """

    config: LlamaConfig

    def __init__(self, config: LlamaConfig) -> None:
        blocks = [LlamaBlock(config) for _ in range(config.num_layers)]
        super().__init__(config, blocks, RMSNorm(config.width, config.norm_eps))

    def enter(self, x_BLD: Tensor, first: int, mask: Mask) -> tuple[Tensor, Context]:
        """See `BlockStack.enter`."""
        config, length = self.config, first + x_BLD.shape[1]
        rotation = rope_rotation(
            length, config.head_dim, config.rope_base, x_BLD.device, first=first
        )
        return x_BLD, Context(self.visibility(mask, first, length, x_BLD.device), rotation)
