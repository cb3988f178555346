"""Mamba (Gu & Dao 2023), the backbone without attention of the paper's Table 6.

Axis letters of this module: E = expand · D the inner channels, S the states of each, R the rank of
the step sizes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu, softplus

from toto.backbones.stack import Block, BlockStack, Context
from toto.layers.causal_conv import CausalConv
from toto.layers.masks import CAUSAL, Visibility
from toto.layers.norm import RMSNorm
from toto.layers.selective_scan import selective_scan

if TYPE_CHECKING:
    from toto.backbones.base import ParamRole
    from toto.backbones.config import MambaConfig
    from toto.layers.cache import RecentInputs
    from toto.layers.masks import Mask

__all__ = ["Mamba", "MambaBlock", "MambaState"]

STEP_RANGE = (1e-3, 1e-1)
"""Of the step sizes at the start, evenly spread over their logarithms."""


class MambaState:
    """What a block keeps of the positions before: as much after a million as after one.

    Attributes:
        inputs: the last ones of the convolution.
        state_BES: of the scan; None before the first position.
    """

    def __init__(self, inputs: RecentInputs) -> None:
        self.inputs = inputs
        self.state_BES: Tensor | None = None


class MambaBlock(Block):
    """Convolution and selective scan, times a gate, on a normalised copy of the residual stream.

    The rates of decay are `-exp(a_log)`, 1..S in each channel at the start; `skip` is what the
    formula calls D. Both go without weight decay.
    """

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        inner, states = config.inner_width, config.state_size
        self.parts = [config.dt_rank, states, states]
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.in_proj = nn.Linear(config.width, 2 * inner, bias=False)
        self.conv = CausalConv(inner, config.conv_kernel)
        self.x_proj = nn.Linear(inner, sum(self.parts), bias=False)
        self.dt_proj = nn.Linear(config.dt_rank, inner)
        self.a_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, config.width, bias=False)
        self._start_steps()
        with torch.no_grad():  # so that the residual stream does not grow with depth
            self.out_proj.weight /= math.sqrt(config.num_layers)

    def forward(self, x_BLD: Tensor, context: Context, kept: MambaState | None = None) -> Tensor:
        """See `Block.forward`."""
        inner_BLE, gate_BLE = self.in_proj(self.norm(x_BLD)).chunk(2, dim=-1)
        u_BLE = silu(self.conv(inner_BLE, None if kept is None else kept.inputs))
        rank_BLR, b_BLS, c_BLS = torch.split(self.x_proj(u_BLE), self.parts, dim=-1)
        # The bias is added in fp32: bf16 has too few digits for steps that differ by 1 in 1000.
        delta_BLE = softplus(linear(rank_BLR, self.dt_proj.weight).float() + self.dt_proj.bias)
        y_BLE, last_BES = selective_scan(
            u_BLE,
            delta_BLE,
            -self.a_log.exp(),
            b_BLS,
            c_BLS,
            self.skip,
            None if kept is None else kept.state_BES,
        )
        if kept is not None:
            kept.state_BES = last_BES
        out_BLD: Tensor = x_BLD + self.drop_path(self.out_proj(y_BLE * silu(gate_BLE)))
        return out_BLD

    def keep(self, length: int) -> MambaState:
        """See `Block.keep`; any number of positions fits."""
        return MambaState(self.conv.keep())

    @torch.no_grad()
    def _start_steps(self) -> None:
        """The bias alone gives steps in `STEP_RANGE`, what the input adds is of its scale."""
        spread = self.dt_proj.in_features**-0.5
        nn.init.uniform_(self.dt_proj.weight, -spread, spread)
        low, high = map(math.log, STEP_RANGE)
        step_E = torch.empty_like(self.dt_proj.bias).uniform_(low, high).exp_()
        self.dt_proj.bias.copy_(step_E + (-torch.expm1(-step_E)).log())  # softplus gives step_E


class Mamba(BlockStack):
    """Pre-norm RMSNorm, a selective scan in every block, no positions, no biases but the scan's.

    Weights start as published: matrices as torch's `nn.Linear`, those that write to the residual
    stream over √L.
    """

    config: MambaConfig

    def __init__(self, config: MambaConfig) -> None:
        blocks = [MambaBlock(config) for _ in range(config.num_layers)]
        super().__init__(config, blocks, RMSNorm(config.width, config.norm_eps))

    def enter(self, x_BLD: Tensor, first: int, mask: Mask) -> tuple[Tensor, Context]:
        """See `BlockStack.enter`; blocks know what came before from what they keep.

        Raises:
            ValueError: any mask but the causal one.
        """
        if mask != CAUSAL:
            raise ValueError(f"a scan reads all that came before and nothing else; not {mask}")
        return x_BLD, Context(Visibility(causal=True))

    def param_roles(self) -> dict[str, ParamRole]:
        """As in `BlockStack`, but for the filter and the rates of decay of each channel.

        The rates are `norm`: a number a state, not a product.
        """
        roles = super().param_roles()
        for index in range(self.config.num_layers):
            roles[f"blocks.{index}.conv.weight"] = "filter"
            roles[f"blocks.{index}.a_log"] = "norm"
        return roles
