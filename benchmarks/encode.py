"""Pictures to dVAE codes: toto beside the dall_e package, same weights, in one process.

Both hold the published network with random weights, spread so that many codes occur. Each round
encodes the same pictures with every contender, in an order that rotates; a ratio is taken within a
round, and the table gives the median and the range. Beside the speed: on how many tokens the
codes agree with the package's in fp32, the largest error of a logit over the largest logit, and
what the memory of the process (on a GPU: its allocator) peaks at above what was there before.

    python benchmarks/encode.py [--rounds 5] [--batch 4] [--resolution 256] [--device cuda]
                                [--compile]

`--compile` adds a contender whose encoder is compiled as a whole: quick, but its sums of floats
may differ between processes (DESIGN §7), so that `encode` does not do it.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import dall_e
import torch
from memory import peak_bytes
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from toto.tokenizers.config import DvaeConfig
from toto.tokenizers.dvae import Dvae

MATRIX = 2048
Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """A way to logits, in pieces as `codes` takes them, and to codes."""

    name: str
    logits: Encode
    codes: Encode


def spread(dvae: Dvae, pixels_BCHW: Tensor) -> Dvae:
    """Let residual paths and biases count, and no code win everywhere."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in dvae.named_parameters():
            if name.endswith(".b"):
                parameter.normal_(std=0.1, generator=generator)
            elif "res_path" in name:
                parameter.mul_(2)
        lead_V = dvae.encoder_logits(pixels_BCHW).mean((0, 2, 3))
        dvae.encoder.get_parameter("blocks.output.conv.b").sub_(lead_V)
    return dvae


def by_dall_e(dvae: Dvae, device: torch.device, *, mixed: bool) -> Contender:
    """The published encoder; mixed is its own default on a GPU, half precision inside."""
    encoder = dall_e.Encoder(use_mixed_precision=mixed)
    encoder.load_state_dict(dvae.encoder.state_dict(), strict=True)
    encoder.to(device).eval()

    def logits(pixels: Tensor) -> Tensor:
        return encoder(dall_e.map_pixels(pixels))

    name = "dall_e, its half precision" if mixed else "dall_e fp32"
    return Contender(name, logits, lambda pixels: logits(pixels).argmax(dim=1))


def by_toto(dvae: Dvae) -> Contender:
    """`Dvae.encode`, as every command calls it."""
    return Contender("toto fp32", dvae.encoder_logits, lambda pixels: dvae.encode(pixels).codes_BHW)


def by_autocast(dvae: Dvae, dtype: torch.dtype, *, compiled: bool) -> Contender:
    """The same weights with half-precision convolutions."""
    run = torch.compile(dvae.encoder_logits) if compiled else dvae.encoder_logits

    def logits(pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, dtype=dtype):
            found: Tensor = run(pixels)
            return found

    name = f"toto {str(dtype).removeprefix('torch.')}{', compiled' if compiled else ''}"
    return Contender(name, logits, lambda pixels: logits(pixels).argmax(dim=1))


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product."""
    a = torch.randn(MATRIX, MATRIX, device=device, dtype=dtype)
    times = [seconds(lambda: a @ a, device) for _ in range(10)]
    return 2 * MATRIX**3 / statistics.median(times)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    generator = torch.Generator().manual_seed(0)
    size = (options.batch, 3, options.resolution, options.resolution)
    pixels = torch.rand(size, generator=generator)
    dvae = DvaeConfig(weights="random:0").build()
    assert isinstance(dvae, Dvae)
    spread(dvae, pixels[:1]).eval().to(device)
    pixels = pixels.to(device)
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    contenders = [by_dall_e(dvae, device, mixed=False), by_toto(dvae)]
    if device.type == "cuda":
        contenders.insert(1, by_dall_e(dvae, device, mixed=True))
    contenders.append(by_autocast(dvae, half, compiled=False))
    if options.compile:
        contenders.append(by_autocast(dvae, half, compiled=True))
    with torch.no_grad():
        report(contenders, pixels, rounds=options.rounds)


def report(contenders: list[Contender], pixels: Tensor, *, rounds: int) -> None:
    """Run the rounds and print what they gave."""
    device = pixels.device
    with FlopCounterMode(display=False) as counter:
        reference = contenders[0].logits(pixels)
    flops = counter.get_total_flops()
    codes = reference.argmax(dim=1)
    for contender in contenders:
        contender.codes(pixels)  # warm
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for round_ in range(rounds):
        turn = round_ % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            times[contender.name].append(seconds(lambda c=contender: c.codes(pixels), device))
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    print(
        f"torch {torch.__version__}, {name or 'cpu'}, {torch.get_num_threads()} threads; "
        f"{len(pixels)} pictures of {pixels.shape[-1]} px, {codes.unique().numel()} different "
        f"codes, {flops / len(pixels) / 1e9:.1f} GFLOP a picture; {rounds} rounds"
    )
    rates = {dtype: matrix_rate(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    print(
        f"matrix rate ({MATRIX}³): fp32 {rates[torch.float32] / 1e9:.0f}, "
        f"bf16 {rates[torch.bfloat16] / 1e9:.0f} GFLOP/s\n"
    )
    print(
        "| | pictures/s | ratio to dall_e fp32 | GFLOP/s | same codes | logit error | peak MB |\n"
        "|---|---|---|---|---|---|---|"
    )
    base = times[contenders[0].name]
    for contender in contenders:
        took = times[contender.name]
        ratios = [first / second for first, second in zip(base, took, strict=True)]
        same = (contender.codes(pixels) == codes).double().mean().item()
        error = (contender.logits(pixels).float() - reference).abs().max() / reference.abs().max()
        peak = peak_bytes(lambda c=contender: c.codes(pixels), device)
        median = statistics.median(took)
        print(
            f"| {contender.name} | {len(pixels) / median:.2f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) "
            f"| {flops / median / 1e9:.0f} | {same:.3%} | {error:.1e} | {peak / 1e6:.0f} |"
        )


if __name__ == "__main__":
    main()
