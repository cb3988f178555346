"""Training step against transformers' LlamaForCausalLM: tokens per second, in one process.

Both sides hold the same sizes (full heads, tied embeddings), see the same ids, take the mean
cross-entropy over the same targets, run under the same autocast and the same fused AdamW, and do
zero_grad, forward, backward and step. The four contenders alternate: in each round every one runs
a few steps, in an order that rotates, so that drift of the machine hits all alike. A ratio is
taken within a round; the table gives the median and the range over rounds.

The matrix rates are measured in the same rounds, in the same precision: a large square product,
and the product that the model runs most often by its own shape (tokens × D by D × 2·ffn).

    python benchmarks/train_step.py [--quick] [--rounds 7] [--steps 3]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import transformers

from toto.backbones.config import LlamaConfig
from toto.model import AutoregressiveModel
from toto.sequence import NUM_SPECIAL_IDS, SequenceLayout
from toto.tokenizers.config import DvaeConfig

if TYPE_CHECKING:
    import contextlib

BATCH = 4
LAYOUT = SequenceLayout(frames=41, height=5, width=5)  # 1025 visual tokens: length 1026
SQUARE = 2048


@dataclass(frozen=True)
class Size:
    """One model: `codes` is the tokenizer's codebook, V that and the special ids."""

    width: int
    layers: int
    heads: int
    ffn: int
    codes: int

    def __str__(self) -> str:
        return f"{self.width} × {self.layers}, V {self.codes + NUM_SPECIAL_IDS}"

    @property
    def config(self) -> LlamaConfig:
        """Our Config of this size."""
        return LlamaConfig(
            width=self.width, num_layers=self.layers, num_heads=self.heads, ffn_dim=self.ffn
        )

    @property
    def step_flops(self) -> float:
        """Of a step: two a multiply-accumulate, backward twice the forward, causal attention."""
        readout = LAYOUT.length * self.width * (self.codes + NUM_SPECIAL_IDS)
        return 3 * 2 * BATCH * (self.config.forward_macs(LAYOUT.length) + readout)


SIZES = [Size(256, 6, 8, 704, 8192), Size(128, 4, 4, 352, 1024)]
QUICK = Size(32, 2, 2, 64, 60)

Step = Callable[[], torch.Tensor]
NAMES = ["HF eager", "HF compiled", "ours eager", "ours compiled"]


@dataclass(frozen=True)
class Setting:
    """Where and in which precision a table is measured."""

    device: torch.device
    bf16: bool

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The same autocast for both sides; none in fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def seconds(self, work: Callable[[], object]) -> float:
        """Wall time of `work`, the device drained on both sides."""
        self._drain()
        start = time.perf_counter()
        work()
        self._drain()
        return time.perf_counter() - start

    def _drain(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def training_step(
    parameters: list[torch.nn.Parameter], loss: Step, autocast: Callable[[], object]
) -> Step:
    """One optimizer step on `loss`, the same for all contenders."""
    optimizer = torch.optim.AdamW(
        parameters, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            value = loss()
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def our_step(size: Size, setting: Setting, codes: torch.Tensor, compiled: bool) -> Step:
    """Ours, as the training loop runs it."""
    torch.manual_seed(0)
    model = AutoregressiveModel(DvaeConfig(num_codes=size.codes), size.config).to(setting.device)
    if compiled:
        model.compile_blocks()
    is_image = torch.zeros(BATCH, dtype=torch.bool, device=setting.device)
    return training_step(
        list(model.parameters()), lambda: model.losses(codes, is_image).mean(), setting.autocast
    )


def peer_step(size: Size, setting: Setting, codes: torch.Tensor, compiled: bool) -> Step:
    """The one of transformers: its own model, its own loss, whole-model torch.compile."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=size.codes + NUM_SPECIAL_IDS,
        hidden_size=size.width,
        intermediate_size=size.ffn,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=LAYOUT.length,
        rms_norm_eps=size.config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": size.config.rope_base},
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = transformers.LlamaForCausalLM(config).to(setting.device).train()
    run = torch.compile(model) if compiled else model
    is_image = torch.zeros(BATCH, dtype=torch.bool, device=setting.device)
    ids, targets = LAYOUT.inputs(codes, is_image), LAYOUT.targets(codes)
    return training_step(
        list(model.parameters()),
        lambda: run(input_ids=ids, labels=targets, shift_labels=targets).loss,
        setting.autocast,
    )


def product(setting: Setting, rows: int, inner: int, columns: int) -> tuple[float, Step]:
    """FLOP and the product of two random matrices in the setting's precision."""
    dtype = torch.bfloat16 if setting.bf16 else torch.float32
    left = torch.randn(rows, inner, device=setting.device, dtype=dtype)
    right = torch.randn(inner, columns, device=setting.device, dtype=dtype)
    return 2.0 * rows * inner * columns, lambda: left @ right


def check_losses(steps: dict[str, Step], size: Size) -> None:
    """All four start at chance, ln V: none of them skips work or sees other targets."""
    chance = torch.tensor(float(size.codes + NUM_SPECIAL_IDS)).log().item()
    for name, step in steps.items():
        loss = step().item()
        if abs(loss - chance) > 0.05 * chance:
            raise SystemExit(f"{name} starts at loss {loss:.3f}, not near ln V = {chance:.3f}")


def measure(size: Size, setting: Setting, rounds: int, steps: int) -> dict[str, list[float]]:
    """Tokens/s of each contender and FLOP/s of the two products, one value a round."""
    codes = torch.randint(size.codes, (BATCH, LAYOUT.frames, LAYOUT.height, LAYOUT.width))
    codes = codes.to(setting.device)
    torch.compiler.reset()
    contenders = {
        "HF eager": peer_step(size, setting, codes, compiled=False),
        "HF compiled": peer_step(size, setting, codes, compiled=True),
        "ours eager": our_step(size, setting, codes, compiled=False),
        "ours compiled": our_step(size, setting, codes, compiled=True),
    }
    check_losses(contenders, size)
    for step in contenders.values():  # the first call compiles, the second allocates
        step()
    products = {
        "square": product(setting, SQUARE, SQUARE, SQUARE),
        "own shape": product(setting, BATCH * LAYOUT.length, size.width, 2 * size.ffn),
    }
    found: dict[str, list[float]] = {name: [] for name in (*contenders, *products)}
    for turn in range(rounds):
        order = NAMES[turn % len(NAMES) :] + NAMES[: turn % len(NAMES)]
        for name in order:
            step = contenders[name]
            seconds = setting.seconds(lambda step=step: [step() for _ in range(steps)])
            found[name].append(steps * BATCH * LAYOUT.length / seconds)
        for name, (flops, multiply) in products.items():
            multiply()
            best = min(setting.seconds(multiply) for _ in range(10))
            found[name].append(flops / best)
    return found


def spread(values: list[float], digits: str) -> str:
    """Median and range: `1.93 (1.88–1.97)`."""
    middle = statistics.median(values)
    return f"{middle:{digits}} ({min(values):{digits}}–{max(values):{digits}})"


def report(size: Size, bf16: bool, found: dict[str, list[float]]) -> str:
    """The rows of one size and precision, and the ratios below them."""
    square, own = (statistics.median(found[name]) / 1e9 for name in ("square", "own shape"))
    tokens = BATCH * LAYOUT.length
    lines = [
        f"\n### {size}, {'bf16' if bf16 else 'fp32'}\n",
        f"Matrix rate: {square:,.0f} GFLOP/s ({SQUARE}³), {own:,.0f} GFLOP/s "
        f"({tokens} × {size.width} × {2 * size.ffn})\n",
        "| | tokens/s | GFLOP/s | of the square rate | ratio to HF eager | ratio to HF compiled |",
        "|---|---|---|---|---|---|",
    ]
    for name in NAMES:
        rate = statistics.median(found[name]) * size.step_flops / tokens / 1e9
        ratios = [
            spread([a / b for a, b in zip(found[name], found[peer], strict=True)], ".2f")
            for peer in NAMES[:2]
        ]
        lines.append(
            f"| {name} | {spread(found[name], ',.0f')} | {rate:,.0f} | {rate / square:.0%} "
            f"| {ratios[0]} | {ratios[1]} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure every size in fp32 and bf16 and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one tiny size: does it run at all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps of each contender a round")
    parser.add_argument("--size", type=int, choices=[0, 1], help="only this one of the sizes")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="only this one")
    arguments = parser.parse_args()
    rounds, steps = (2, 1) if arguments.quick else (arguments.rounds, arguments.steps)
    sizes = SIZES if arguments.size is None else [SIZES[arguments.size]]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {where or 'cpu'}, "
        f"{torch.get_num_threads()} threads; batch {BATCH}, length {LAYOUT.length}; "
        f"median (range) of {rounds} rounds of {steps} steps",
        flush=True,
    )
    for size in [QUICK] if arguments.quick else sizes:
        for precision in [arguments.precision] if arguments.precision else ["fp32", "bf16"]:
            setting = Setting(device, precision == "bf16")
            print(report(size, setting.bf16, measure(size, setting, rounds, steps)), flush=True)


if __name__ == "__main__":
    main()
