"""Greedy decoding with a cache against transformers' `generate`, the same weights, in one process.

A prompt is read, then ids are appended one at a time. Each round runs both sides in an order that
rotates; the time of a step is that of the whole continuation, less the prompt's, over its ids. The
floor is what the matrix products of one step take by themselves: every weight once, at this batch.
Both sides must give the same ids; where they differ, the table says from which step on.

    python benchmarks/generate.py [--rounds 5] [--steps 128] [--sizes small,base] [--batches 1,16]
                                [--context 2048] [--device cuda]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import transformers
from torch import Tensor

from toto.backbones.config import LlamaConfig
from toto.export.layout import family_of, to_theirs
from toto.model import AutoregressiveModel
from toto.tokenizers.config import DvaeConfig

PROMPT = 256
SIZES = {
    "tiny": LlamaConfig.model_validate({"preset": "tiny"}),
    "small": LlamaConfig(width=256, num_layers=6, num_heads=8, ffn_dim=704),
    "base": LlamaConfig.model_validate({"preset": "base"}),
}
Continue = Callable[[Tensor, int], Tensor]


def ours(model: AutoregressiveModel, context: int) -> Continue:
    """The loop of `toto generate`, without drawing: the most probable id each time."""

    @torch.inference_mode()
    def run(ids_BL: Tensor, steps: int) -> Tensor:
        cache = model.new_cache(context)
        new_BL, found = ids_BL, []
        for _ in range(steps):
            new_BL = model.next_logits(new_BL, cache).argmax(-1, keepdim=True)
            found.append(new_BL)
        return torch.cat(found, dim=1)

    return run


def peer(model: AutoregressiveModel, config: LlamaConfig, context: int) -> Continue:
    """Transformers' model with our weights; no id ends it."""
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    vocab = len(state["interface.embedding.weight"])
    family = family_of(config, vocab_size=vocab, length=context)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**family.config))
    theirs.load_state_dict(to_theirs(state, family), strict=False)
    theirs.tie_weights()
    theirs.to(next(model.parameters()).device).eval()

    @torch.inference_mode()
    def run(ids_BL: Tensor, steps: int) -> Tensor:
        made: Tensor = theirs.generate(
            ids_BL,
            attention_mask=torch.ones_like(ids_BL),
            max_new_tokens=steps,
            min_new_tokens=steps,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return made[:, ids_BL.shape[1] :]

    return run


def floor(model: AutoregressiveModel, batch: int) -> Callable[[], object]:
    """The matrix products of one step."""
    weights = [p for p in model.parameters() if p.ndim == 2]
    inputs = [torch.randn(batch, w.shape[1], device=w.device) for w in weights]

    @torch.inference_mode()
    def run() -> None:
        for x, weight in zip(inputs, weights, strict=True):
            torch.nn.functional.linear(x, weight)

    return run


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--sizes", default="small,base")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {name or 'cpu'}, "
        f"{torch.get_num_threads()} threads, fp32; prompt {PROMPT}, {options.steps} steps, "
        f"context {options.context}; median (range) of {options.rounds} rounds\n"
    )
    print(
        "| model | batch | ours, ms a step | generate, ms a step | ratio | products, ms "
        "| ours over products | same ids |\n|---|---|---|---|---|---|---|---|"
    )
    for size in options.sizes.split(","):
        config = SIZES[size]
        torch.manual_seed(0)
        model = AutoregressiveModel(DvaeConfig(), config).to(device).eval()
        sides = [ours(model, options.context), peer(model, config, options.context)]
        for batch in map(int, options.batches.split(",")):
            row = measure(model, sides, batch, options.steps, options.rounds, device)
            print(f"| {config.width} × {config.num_layers} | {batch} | {row} |", flush=True)


def measure(
    model: AutoregressiveModel,
    sides: list[Continue],
    batch: int,
    steps: int,
    rounds: int,
    device: torch.device,
) -> str:
    """The rounds of one row, as its cells from the fourth on."""
    vocab = len(model.state_dict()["interface.embedding.weight"])
    generator = torch.Generator().manual_seed(0)
    ids_BL = torch.randint(4, vocab, (batch, PROMPT), generator=generator).to(device)
    found = [side(ids_BL, steps) for side in sides]  # warm, and compared
    products = floor(model, batch)
    products()
    times: list[list[float]] = [[], []]
    floors: list[float] = []
    for round_ in range(rounds):
        for index in (0, 1) if round_ % 2 == 0 else (1, 0):
            side = sides[index]
            prompt = seconds(lambda side=side: side(ids_BL, 1), device)
            whole = seconds(lambda side=side: side(ids_BL, steps), device)
            times[index].append((whole - prompt) / (steps - 1))
        floors.append(seconds(lambda: [products() for _ in range(10)], device) / 10)
    ratios = [theirs / mine for mine, theirs in zip(*times, strict=True)]
    above = [mine / least for mine, least in zip(times[0], floors, strict=True)]
    same = (found[0] == found[1]).all(0)
    agree = "all" if same.all() else f"until step {int((~same).nonzero()[0])}"
    cells = [
        *(f"{1e3 * statistics.median(side):.2f}" for side in times),
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
        f"{1e3 * statistics.median(floors):.2f}",
        f"{statistics.median(above):.2f} ({min(above):.2f}–{max(above):.2f})",
        agree,
    ]
    return " | ".join(cells)


if __name__ == "__main__":
    main()
