"""Depthwise causal convolution over positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toto.layers.cache import RecentInputs

__all__ = ["CausalConv"]


class CausalConv(nn.Module):
    """Each channel is a weighted sum of its last K inputs and a bias; before the first are zeros.

    Weights and bias are those of `nn.Conv1d(channels, channels, K, groups=channels)`, its start
    included.

    Args:
        channels: E, the size of the last axis.
        kernel: K, inputs in a sum, the newest last.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        start = nn.Conv1d(channels, channels, kernel, groups=channels)
        self.weight = start.weight
        assert start.bias is not None
        self.bias = start.bias
        self.kernel = kernel

    def keep(self) -> RecentInputs:
        """What the layer keeps of the positions it has seen."""
        return RecentInputs(self.kernel - 1)

    def forward(self, x_BLE: Tensor, kept: RecentInputs | None = None) -> Tensor:
        """`BLE` → `BLE`, fp32 under autocast too; `kept` goes before and takes these in."""
        window_BLE = (kept or self.keep()).append(x_BLE)
        # Shifted sums: torch's own kernel wants positions last, and takes half as long again.
        out_BLE = self.bias.expand(x_BLE.shape)
        for index in range(self.kernel):
            shifted_BLE = window_BLE[:, index : index + x_BLE.shape[1]]
            out_BLE = torch.addcmul(out_BLE, shifted_BLE, self.weight[:, 0, index])
        return out_BLE
