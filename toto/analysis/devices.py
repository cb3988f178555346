"""What GPUs can do at best, for plans. No torch here.

Rates are the makers' dense peaks, without structured sparsity, with fp32 accumulation; fp32 is that
of plain cores, as TF32 stays off. Memory is that of the name in GiB, near what the driver shows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from toto.errors import UserError
from toto.registry import nearest

__all__ = ["DEVICES", "Device", "device_of_driver", "find_device"]


@dataclass(frozen=True)
class Device:
    """One GPU, or a CPU of which nothing is said.

    Attributes:
        title: its maker's name.
        bf16_tflops: dense matrix products in bf16, 10^12 FLOP/s; None: not stated.
        fp32_tflops: in fp32, likewise.
        memory_gib: of one device; None: not stated.
        source: of the figures.
        kind: where torch runs.
        driver: a pattern of the names that the driver gives it; none: never found by name.
    """

    title: str
    bf16_tflops: float | None
    fp32_tflops: float | None
    memory_gib: float | None
    source: str
    driver: str
    kind: Literal["cpu", "cuda"] = "cuda"

    def flops(self, precision: Literal["fp32", "bf16"]) -> float | None:
        """FLOP/s of matrix products at best; a multiply-accumulate is two."""
        rate = self.bf16_tflops if precision == "bf16" else self.fp32_tflops
        return None if rate is None else rate * 1e12


HOPPER = "NVIDIA H100/H200 datasheets, SXM: half of the rate with sparsity"
AMPERE = "NVIDIA A100 datasheet"
ADA = "NVIDIA {} datasheet: half of the rate with sparsity"

DEVICES: dict[str, Device] = {
    "h100": Device("NVIDIA H100 SXM 80 GB", 989.4, 66.9, 80, HOPPER, r"H100 80GB HBM3"),
    "h200": Device("NVIDIA H200 SXM 141 GB", 989.4, 66.9, 141, HOPPER, r"H200"),
    "b200": Device(
        "NVIDIA B200 180 GB", 2250, 80, 180, "NVIDIA HGX B200 datasheet, over 8 GPUs", r"B200"
    ),
    "a100-40": Device("NVIDIA A100 40 GB", 312, 19.5, 40, AMPERE, r"A100-\w+-40GB"),
    "a100-80": Device(
        "NVIDIA A100 80 GB", 312, 19.5, 80, AMPERE, r"A100(-SXM4-80GB|-PCIE-80GB| 80GB PCIe)"
    ),
    "l40s": Device("NVIDIA L40S 48 GB", 362, 91.6, 48, ADA.format("L40S"), r"L40S"),
    "l4": Device("NVIDIA L4 24 GB", 121, 30.3, 24, ADA.format("L4"), r"L4"),
    "rtx4090": Device(
        "NVIDIA GeForce RTX 4090 24 GB",
        165.2,
        82.6,
        24,
        "NVIDIA Ada architecture whitepaper",
        r"GeForce RTX 4090",
    ),
    "cpu": Device("a CPU", None, None, None, "differs from machine to machine", "", "cpu"),
}


def find_device(name: str) -> Device:
    """The device of a name.

    Raises:
        UserError: there is none; the message lists those that there are.
    """
    if name in DEVICES:
        return DEVICES[name]
    guess = nearest(name, list(DEVICES))
    hint = f" Did you mean {guess}?" if guess else ""
    raise UserError(f"--device {name}: unknown. There are {', '.join(DEVICES)}.{hint}")


def device_of_driver(name: str) -> Device | None:
    """The device that the driver calls `name`, such as "NVIDIA H100 80GB HBM3"; None: not here.

    Relatives with other rates, such as "NVIDIA H100 PCIe" or "NVIDIA H200 NVL", are not found.
    """
    fits = (
        device
        for device in DEVICES.values()
        if device.driver and re.fullmatch(rf"NVIDIA {device.driver}", name)
    )
    return next(fits, None)
