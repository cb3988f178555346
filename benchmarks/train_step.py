"""Training step against transformers' own class of each family: tokens per second, in one process.

Both sides hold the same sizes (full heads, tied embeddings), see the same ids, take the mean
cross-entropy over the same targets, run under the same autocast and the same fused AdamW, and do
zero_grad, forward, backward and step. The contenders alternate: in each round every one runs
a few steps, in an order that rotates, so that drift of the machine hits all alike. A ratio is
taken within a round; the table gives the median and the range over rounds.

transformers' GPT-2 learns its positions, ours adds fixed ones. Its Mamba runs its plain path, which
visits position after position: torch.compile would unroll all of them, so that row is missing, and
a step takes so long on a CPU that `--family mamba --rounds 3 --steps 1` is enough.

Peak memory is what one step takes above weights, moments and the gradients of the step before.
The matrix rates are measured in the same rounds, in the same precision: a large square product,
and the first product of a block's widest part by its own shape (tokens × D by D × its columns).

    python benchmarks/train_step.py [--quick] [--family llama] [--rounds 7] [--steps 3]
    python benchmarks/train_step.py --preset 1b --batch 2 --precision bf16     # on a GPU
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
from memory import peak_bytes

from toto.backbones.config import BackboneConfig, Gpt2Config, LlamaConfig, MambaConfig
from toto.export.layout import family_of
from toto.model import AutoregressiveModel
from toto.sequence import NUM_SPECIAL_IDS, SequenceLayout
from toto.tokenizers.config import DvaeConfig

if TYPE_CHECKING:
    import contextlib

BATCH = 4
LAYOUT = SequenceLayout(frames=41, height=5, width=5)  # 1025 visual tokens: length 1026
PUBLISHED = SequenceLayout(frames=16, height=16, width=16)  # the paper's 4096
SQUARE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Size:
    """One model: `codes` is the tokenizer's codebook, V that and the special ids.

    `widest` is the columns of the block's widest product, `peer_compiles` whether whole-model
    torch.compile of the peer can end.
    """

    config: BackboneConfig
    codes: int
    widest: int
    peer_compiles: bool = True
    layout: SequenceLayout = LAYOUT
    batch: int = BATCH

    def __str__(self) -> str:
        config, vocabulary = self.config, self.codes + NUM_SPECIAL_IDS
        return f"{config.registered_name}, {config.width} × {config.num_layers}, V {vocabulary}"

    @property
    def step_flops(self) -> float:
        """Of a step: two a multiply-accumulate, backward twice the forward, causal attention."""
        readout = self.layout.length * self.config.width * (self.codes + NUM_SPECIAL_IDS)
        return 3 * 2 * self.batch * (self.config.forward_macs(self.layout.length) + readout)

    @property
    def step_tokens(self) -> int:
        """Of a step."""
        return self.batch * self.layout.length


def llama(width: int, layers: int, heads: int, ffn: int, codes: int) -> Size:
    """A LLaMA; gate and up are one product."""
    config = LlamaConfig(width=width, num_layers=layers, num_heads=heads, ffn_dim=ffn)
    return Size(config, codes, 2 * ffn)


def gpt2(width: int, layers: int, heads: int, codes: int) -> Size:
    """A GPT-2 with an MLP of four widths."""
    config = Gpt2Config(width=width, num_layers=layers, num_heads=heads, ffn_dim=4 * width)
    return Size(config, codes, 4 * width)


def mamba(width: int, layers: int, codes: int) -> Size:
    """A Mamba; scan and gate are one product."""
    config = MambaConfig(width=width, num_layers=layers)
    return Size(config, codes, 2 * config.inner_width, peer_compiles=False)


def published(preset: str, batch: int) -> Size:
    """A LLaMA of the paper on its codes and its length."""
    config = LlamaConfig.model_validate({"preset": preset})
    return Size(config, 8192, 2 * config.ffn_dim, layout=PUBLISHED, batch=batch)


SIZES = {
    "llama": [llama(256, 6, 8, 704, 8192), llama(128, 4, 4, 352, 1024)],
    "gpt2": [gpt2(256, 6, 8, 8192), gpt2(128, 4, 4, 1024)],
    "mamba": [mamba(256, 6, 8192), mamba(128, 4, 1024)],
}
QUICK = {"llama": llama(32, 2, 2, 64, 60), "gpt2": gpt2(32, 2, 2, 60), "mamba": mamba(32, 1, 60)}

Step = Callable[[], torch.Tensor]

HF = ["HF eager", "HF compiled"]
OURS = ["ours eager", "ours compiled"]


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
    is_image = torch.zeros(size.batch, dtype=torch.bool, device=setting.device)
    return training_step(
        list(model.parameters()), lambda: model.losses(codes, is_image).mean(), setting.autocast
    )


def peer_step(size: Size, setting: Setting, codes: torch.Tensor, compiled: bool) -> Step:
    """The one of transformers: its own model, its own loss, whole-model torch.compile."""
    torch.manual_seed(0)
    family = family_of(
        size.config, vocab_size=size.codes + NUM_SPECIAL_IDS, length=size.layout.length
    )
    peer = getattr(transformers, family.config["architectures"][0])
    config = peer.config_class(**family.config, use_cache=False, initializer_range=0.02)
    config.use_mambapy = False  # Mamba's plain path
    model = peer(config).to(setting.device).train()
    run = torch.compile(model) if compiled else model
    is_image = torch.zeros(size.batch, dtype=torch.bool, device=setting.device)
    ids, targets = size.layout.inputs(codes, is_image), size.layout.targets(codes)
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
    """All start at chance, ln V: none of them skips work or sees other targets."""
    chance = torch.tensor(float(size.codes + NUM_SPECIAL_IDS)).log().item()
    for name, step in steps.items():
        loss = step().item()
        if abs(loss - chance) > 0.05 * chance:
            raise SystemExit(f"{name} starts at loss {loss:.3f}, not near ln V = {chance:.3f}")


@dataclass(frozen=True)
class Found:
    """What was measured: `rates`, tokens/s or of a product FLOP/s, a value a round; peak bytes."""

    rates: dict[str, list[float]]
    peaks: dict[str, int]


def measure(size: Size, setting: Setting, rounds: int, steps: int) -> Found:
    """Every contender and both products, turn by turn."""
    layout, square = size.layout, SQUARE[setting.device.type]
    codes = torch.randint(size.codes, (size.batch, layout.frames, layout.height, layout.width))
    codes = codes.to(setting.device)
    torch.compiler.reset()
    contenders = {
        "HF eager": peer_step(size, setting, codes, compiled=False),
        "HF compiled": peer_step(size, setting, codes, compiled=True),
        "ours eager": our_step(size, setting, codes, compiled=False),
        "ours compiled": our_step(size, setting, codes, compiled=True),
    }
    if not size.peer_compiles:
        del contenders["HF compiled"]
    check_losses(contenders, size)
    for step in contenders.values():  # the first call compiles, the second allocates
        step()
    products = {
        "square": product(setting, square, square, square),
        "own shape": product(setting, size.step_tokens, size.config.width, size.widest),
    }
    found: dict[str, list[float]] = {name: [] for name in (*contenders, *products)}
    for turn in range(rounds):
        names, shift = list(contenders), turn % len(contenders)
        for name in names[shift:] + names[:shift]:
            step = contenders[name]
            seconds = setting.seconds(lambda step=step: [step() for _ in range(steps)])
            found[name].append(steps * size.step_tokens / seconds)
        for name, (flops, multiply) in products.items():
            multiply()
            best = min(setting.seconds(multiply) for _ in range(10))
            found[name].append(flops / best)
    peaks = {name: peak_bytes(step, setting.device) for name, step in contenders.items()}
    return Found(found, peaks)


def spread(values: list[float], digits: str) -> str:
    """Median and range: `1.93 (1.88–1.97)`."""
    middle = statistics.median(values)
    return f"{middle:{digits}} ({min(values):{digits}}–{max(values):{digits}})"


def report(size: Size, setting: Setting, measured: Found) -> str:
    """The rows of one size and precision, and the ratios below them."""
    found = measured.rates
    square, own = (statistics.median(found[name]) / 1e9 for name in ("square", "own shape"))
    tokens, side = size.step_tokens, SQUARE[setting.device.type]
    peers = [name for name in HF if name in found]
    lines = [
        f"\n### {size}, {'bf16' if setting.bf16 else 'fp32'}\n",
        f"Batch {size.batch}, length {size.layout.length}. "
        f"Matrix rate: {square:,.0f} GFLOP/s ({side}³), {own:,.0f} GFLOP/s "
        f"({tokens} × {size.config.width} × {size.widest})\n",
        "| | tokens/s | GFLOP/s | of the square rate | peak MB |"
        + "".join(f" ratio to {peer} |" for peer in peers),
        "|---|---|---|---|---|" + "---|" * len(peers),
    ]
    for name in (*peers, *OURS):
        rate = statistics.median(found[name]) * size.step_flops / tokens / 1e9
        ratios = [
            spread([a / b for a, b in zip(found[name], found[peer], strict=True)], ".2f")
            for peer in peers
        ]
        lines.append(
            f"| {name} | {spread(found[name], ',.0f')} | {rate:,.0f} | {rate / square:.0%} "
            f"| {measured.peaks[name] / 1e6:,.0f} | {' | '.join(ratios)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure every size in fp32 and bf16 and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps of each contender a round")
    parser.add_argument("--family", choices=list(SIZES), help="only this one")
    parser.add_argument("--size", type=int, choices=[0, 1], help="only this one of the sizes")
    parser.add_argument("--preset", help="a LLaMA of the paper instead, at 4097 tokens: base, 1b")
    parser.add_argument("--batch", type=int, default=BATCH, help="with --preset")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="only this one")
    arguments = parser.parse_args()
    rounds, steps = (2, 1) if arguments.quick else (arguments.rounds, arguments.steps)
    families = [arguments.family] if arguments.family else list(SIZES)
    offered = {name: [QUICK[name]] if arguments.quick else SIZES[name] for name in families}
    chosen = slice(None) if arguments.size is None else slice(arguments.size, arguments.size + 1)
    sizes = [size for name in families for size in offered[name][chosen]]
    if arguments.preset:
        sizes = [published(arguments.preset, arguments.batch)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {where or 'cpu'}, "
        f"{torch.get_num_threads()} threads; "
        f"median (range) of {rounds} rounds of {steps} steps",
        flush=True,
    )
    for size in sizes:
        for precision in [arguments.precision] if arguments.precision else ["fp32", "bf16"]:
            setting = Setting(device, precision == "bf16")
            print(report(size, setting, measure(size, setting, rounds, steps)), flush=True)


if __name__ == "__main__":
    main()
