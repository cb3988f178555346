"""What is kept of the positions already computed, so that the next one costs one position."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["KeyValues", "RecentInputs"]


class KeyValues:
    """Keys and values of one attention layer; the memory of all positions is taken at the first.

    Args:
        length: the most positions that fit.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._filled = 0
        self._kept: tuple[Tensor, Tensor] | None = None

    def append(self, key_BGLK: Tensor, value_BGLK: Tensor) -> tuple[Tensor, Tensor]:
        """Add positions.

        Returns:
            Keys and values of all positions so far, as views.

        Raises:
            ValueError: more positions than fit, or another batch than before.
        """
        begin, end = self._filled, self._filled + key_BGLK.shape[2]
        if end > self._length:
            raise ValueError(f"{end} positions, and the cache holds {self._length}")
        if self._kept is None:
            batch, heads, _, size = key_BGLK.shape
            empty = key_BGLK.new_empty(2, batch, heads, self._length, size)
            self._kept = (empty[0], empty[1])
        key, value = self._kept
        if len(key) != len(key_BGLK):
            raise ValueError(f"a batch of {len(key_BGLK)}, and the cache holds one of {len(key)}")
        key[:, :, begin:end] = key_BGLK
        value[:, :, begin:end] = value_BGLK
        self._filled = end
        return key[:, :, :end], value[:, :, :end]


class RecentInputs:
    """The last inputs of a layer that reads back a fixed number of positions; zeros before them.

    Args:
        count: positions that are kept.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept_BLE: Tensor | None = None

    def append(self, x_BLE: Tensor) -> Tensor:
        """Add positions.

        Returns:
            The `count` positions before them, then these.
        """
        if self._kept_BLE is None:
            self._kept_BLE = x_BLE.new_zeros(len(x_BLE), self._count, x_BLE.shape[2])
        all_BLE = torch.cat((self._kept_BLE, x_BLE), dim=1)
        self._kept_BLE = all_BLE[:, x_BLE.shape[1] :].clone()  # a view would hold all of them
        return all_BLE
