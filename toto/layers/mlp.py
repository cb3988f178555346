"""The feed-forward part of a block."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu, silu

__all__ = ["GeluMlp", "SwiGLU"]


class SwiGLU(nn.Module):
    """`(silu(x W_gate) · x W_up) W_down` (Shazeer 2020), no biases; gate and up are one product.

    Args:
        width: D.
        hidden: size between the two products.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """`BLD` → `BLD`."""
        gate, up = self.gate_up(x_BLD).chunk(2, dim=-1)
        out_BLD: Tensor = self.down(silu(gate) * up)
        return out_BLD


class GeluMlp(nn.Module):
    """`gelu(x W_up + b) W_down + b`, the GELU by its tanh formula, as GPT-2 has it.

    Args:
        width: D.
        hidden: size between the two products.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """`BLD` → `BLD`."""
        out_BLD: Tensor = self.down(gelu(self.up(x_BLD), approximate="tanh"))
        return out_BLD
