"""LLaMA (Touvron et al. 2023), the paper's backbone (§3.2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor, nn

from toto.backbones.base import Backbone, ParamRole, resolve_layers
from toto.layers.attention import CausalAttention, fastest_attention
from toto.layers.mlp import SwiGLU
from toto.layers.norm import RMSNorm
from toto.layers.rope import Rotation, rope_rotation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toto.backbones.config import LlamaConfig

__all__ = ["Llama", "LlamaBlock"]

INIT_STD = 0.02


class LlamaBlock(nn.Module):
    """Attention, then SwiGLU, each on a normalised copy of the residual stream."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = CausalAttention(config.width, config.num_heads)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config.width, config.ffn_dim)
        residual_std = INIT_STD / math.sqrt(2 * config.num_layers)
        nn.init.normal_(self.attention.query_key_value.weight, std=INIT_STD)
        nn.init.normal_(self.attention.output.weight, std=residual_std)
        nn.init.normal_(self.mlp.gate_up.weight, std=INIT_STD)
        nn.init.normal_(self.mlp.down.weight, std=residual_std)

    def forward(self, x_BLD: Tensor, rotation: Rotation) -> Tensor:
        """`BLD` → `BLD`."""
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), rotation)
        out_BLD: Tensor = x_BLD + self.mlp(self.mlp_norm(x_BLD))
        return out_BLD


class Llama(Backbone):
    """Pre-norm RMSNorm, SwiGLU, half-split RoPE over the raster sequence, no biases, no dropout.

    Weights are drawn from N(0, 0.02²), those that write to the residual stream from
    N(0, 0.02² / 2L) (Radford et al. 2019), so that its variance does not grow with depth.
    """

    config: LlamaConfig

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(LlamaBlock(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.norm_eps)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """All blocks and the last norm: `BLD` → `BLD`."""
        rotation = self.rotation(x_BLD)
        for block in self.blocks:
            x_BLD = block(x_BLD, rotation)
        out_BLD: Tensor = self.norm(x_BLD)
        return out_BLD

    def features(self, x_BLD: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """See `Backbone.features`."""
        resolved = resolve_layers(layers, self.config.num_layers)
        wanted = set(resolved.values())
        found = {0: x_BLD}
        rotation = self.rotation(x_BLD)
        for index in range(1, max(wanted, default=0) + 1):
            x_BLD = self.blocks[index - 1](x_BLD, rotation)
            if index in wanted:
                found[index] = x_BLD
        return {layer: found[index] for layer, index in resolved.items()}

    def param_roles(self) -> dict[str, ParamRole]:
        """Gains of norms are `norm`, every matrix is `hidden`."""
        return {
            name: "norm" if parameter.ndim == 1 else "hidden"
            for name, parameter in self.named_parameters()
        }

    def compile_blocks(self) -> None:
        """See `Backbone.compile_blocks`; attention takes the fastest path of this machine."""
        # Shapes stay fixed: a graph for any batch size, made when a second size appears, would
        # round otherwise than the first, and a resumed run would not repeat the unbroken one.
        attend = fastest_attention()
        for block in self.blocks:
            assert isinstance(block, LlamaBlock)
            block.attention.attend = attend
            block.compile(dynamic=False)
        self.norm.compile(dynamic=False)

    def rotation(self, x_BLD: Tensor) -> Rotation:
        """What every block turns its queries and keys by: positions 0..L-1 of `x_BLD`."""
        config = self.config
        return rope_rotation(x_BLD.shape[1], config.head_dim, config.rope_base, x_BLD.device)
