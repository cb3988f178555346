"""What is kept of the positions already computed, so that the next one costs one position."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KeyValues"]


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
            ValueError: more positions than fit.
        """
        begin, end = self._filled, self._filled + key_BGLK.shape[2]
        if end > self._length:
            raise ValueError(f"{end} positions, and the cache holds {self._length}")
        if self._kept is None:
            batch, heads, _, size = key_BGLK.shape
            empty = key_BGLK.new_empty(2, batch, heads, self._length, size)
            self._kept = (empty[0], empty[1])
        key, value = self._kept
        key[:, :, begin:end] = key_BGLK
        value[:, :, begin:end] = value_BGLK
        self._filled = end
        return key[:, :, :end], value[:, :, :end]
