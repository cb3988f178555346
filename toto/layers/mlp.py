"""The feed-forward part of a block."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import silu

__all__ = ["SwiGLU"]


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
