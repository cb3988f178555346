"""What a device can compute at most, which utilisation (MFU) is a share of."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch

from toto.analysis.devices import device_of_driver

__all__ = ["Peak", "device_peak", "measure_peak"]

FIRST_SIDE, LAST_SIDE = 512, 8192
# Seconds of a product: longer than its start costs, shorter than a busy machine's turns.
LONG_ENOUGH = 0.0003
SECONDS, PRODUCTS = 0.1, 10  # at least


@dataclass(frozen=True)
class Peak:
    """FLOP/s of one device (a multiply-accumulate is two), and where the figure is from."""

    flops: float
    origin: str


def device_peak(device: torch.device, precision: Literal["fp32", "bf16"]) -> Peak:
    """The peak of a device: stated by its maker if `toto plan` knows the GPU, else measured."""
    if device.type == "cuda":
        known = device_of_driver(torch.cuda.get_device_name(device))
        stated = None if known is None else known.flops(precision)
        if known is not None and stated is not None:
            return Peak(stated, f"stated for {known.title}, {precision} ({known.source})")
    return measure_peak(device, precision)


def measure_peak(device: torch.device, precision: Literal["fp32", "bf16"]) -> Peak:
    """The fastest of the square matrix products of a tenth of a second.

    Other work beside it does not lower it much: each product fits between that work's turns.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side = FIRST_SIDE
    while True:
        seconds = _fastest_product(device, dtype, side)
        if seconds >= LONG_ENOUGH or side == LAST_SIDE:
            break
        side *= 2
    return Peak(
        2 * side**3 / seconds,
        f"measured: the fastest {precision} product of {side} × {side} matrices",
    )


def _fastest_product(device: torch.device, dtype: torch.dtype, side: int) -> float:
    a = torch.ones(side, side, device=device, dtype=dtype)
    result = torch.empty_like(a)
    torch.mm(a, a, out=result)  # the first one also sets the library up
    taken: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(taken) < PRODUCTS:
        _wait(device)
        begun = time.perf_counter()
        torch.mm(a, a, out=result)
        _wait(device)
        taken.append(time.perf_counter() - begun)
    return min(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
