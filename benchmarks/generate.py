"""Greedy decoding with a cache against transformers' `generate`, the same weights, in one process.

A prompt is read, then ids are appended one at a time. Each round runs both sides in an order that
rotates; the time of a step is that of the whole continuation, less the prompt's, over its ids. The
floor is what the matrix products of one step take by themselves: those with every weight once, and
those with the keys and the values of every layer in the middle of the continuation, by torch's
attention, the fastest way there is. Both sides must give the same ids; where they differ, the table
says from which step on.

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
from toto.layers.cache import KeyValues
from toto.model import AutoregressiveModel
from toto.tokenizers.config import DvaeConfig

PROMPT = 256
FLOOR_STEPS = 20
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


def weight_products(model: AutoregressiveModel, batch: int) -> Callable[[], object]:
    """The products of one step with the weights."""
    weights = [p for p in model.parameters() if p.ndim == 2]
    inputs = [torch.randn(batch, w.shape[1], device=w.device) for w in weights]

    @torch.inference_mode()
    def run() -> None:
        for x, weight in zip(inputs, weights, strict=True):
            torch.nn.functional.linear(x, weight)

    return run


def attention_products(
    config: LlamaConfig, batch: int, read: int, context: int, device: torch.device
) -> Callable[[], object]:
    """Attention over the keys and the values of `read` positions, where the cache keeps them."""
    one = torch.randn(batch, config.num_heads, 1, config.head_dim, device=device)
    all_read = torch.randn(batch, config.num_heads, read, config.head_dim, device=device)
    caches = [KeyValues(context) for _ in range(config.num_layers)]
    kept = [cache.append(all_read, all_read) for cache in caches]

    @torch.inference_mode()
    def run() -> None:
        for key_BNLK, value_BNLK in kept:
            torch.nn.functional.scaled_dot_product_attention(one, key_BNLK, value_BNLK)

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
        "| with the weights alone, ms | ours over products | same ids |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for size in options.sizes.split(","):
        config = SIZES[size]
        torch.manual_seed(0)
        model = AutoregressiveModel(DvaeConfig(), config).to(device).eval()
        sides = [ours(model, options.context), peer(model, config, options.context)]
        for batch in map(int, options.batches.split(",")):
            middle = PROMPT + options.steps // 2
            floors = [
                weight_products(model, batch),
                attention_products(config, batch, middle, options.context, device),
            ]
            row = measure(model, sides, floors, batch, options.steps, options.rounds)
            print(f"| {config.width} × {config.num_layers} | {batch} | {row} |", flush=True)


def measure(
    model: AutoregressiveModel,
    sides: list[Continue],
    floors: list[Callable[[], object]],
    batch: int,
    steps: int,
    rounds: int,
) -> str:
    """The rounds of one row, as its cells from the third on."""
    weight = model.state_dict()["interface.embedding.weight"]
    generator = torch.Generator().manual_seed(0)
    ids_BL = torch.randint(4, len(weight), (batch, PROMPT), generator=generator).to(weight.device)
    found = [side(ids_BL, steps) for side in sides]  # warm, and compared
    times: list[list[float]] = [[], []]
    products: list[list[float]] = [[], []]
    for round_ in range(rounds):
        for index in (0, 1) if round_ % 2 == 0 else (1, 0):
            side = sides[index]
            prompt = seconds(lambda side=side: side(ids_BL, 1), weight.device)
            whole = seconds(lambda side=side: side(ids_BL, steps), weight.device)
            times[index].append((whole - prompt) / (steps - 1))
        # In turn, as a step has them: what one reads the other's caches have lost.
        in_turn = [[seconds(work, weight.device) for work in floors] for _ in range(FLOOR_STEPS)]
        for kind, taken in zip(products, zip(*in_turn, strict=True), strict=True):
            kind.append(statistics.median(taken))
    ratios = [theirs / mine for mine, theirs in zip(*times, strict=True)]
    both = [sum(parts) for parts in zip(*products, strict=True)]
    above = [mine / least for mine, least in zip(times[0], both, strict=True)]
    same = (found[0] == found[1]).all(0)
    agree = "all" if same.all() else f"until step {int((~same).nonzero()[0])}"
    cells = [
        *(f"{1e3 * statistics.median(side):.2f}" for side in times),
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
        f"{1e3 * statistics.median(both):.2f}",
        f"{1e3 * statistics.median(products[0]):.2f}",
        f"{statistics.median(above):.2f} ({min(above):.2f}–{max(above):.2f})",
        agree,
    ]
    return " | ".join(cells)


if __name__ == "__main__":
    main()
