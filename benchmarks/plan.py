"""Predicted memory beside the measured peak of real training steps, a process each.

A row is one model, precision and setting: a process of its own builds it with the engine of one
process and takes two steps. `tensors` is the most that torch's allocator has given out at once in a
step, by its profiler (on a GPU: the allocator's own count), `process` the kernel's high-water mark
of resident memory above what the process held before the model, libraries' buffers included. So
that freed memory goes back to the kernel at once, glibc's threshold of mapped blocks is fixed
(MALLOC_MMAP_THRESHOLD_); `--malloc` leaves it as users have it. Ratios are predicted to measured.

    OMP_NUM_THREADS=1 python benchmarks/plan.py [--family llama] [--compile] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate, product
from typing import TYPE_CHECKING

from toto.analysis.gpu_memory import Setting, highest_moment
from toto.analysis.memory_terms import Load
from toto.backbones.config import BackboneConfig, Gpt2Config, LlamaConfig, MambaConfig
from toto.backbones.memory import Pass
from toto.model_size import ModelSize
from toto.sequence import SequenceLayout
from toto.tokenizers.config import DvaeConfig

if TYPE_CHECKING:
    from collections.abc import Callable

LAYOUT = SequenceLayout(4, 16, 16)
BATCH = 2
STEPS = 2


@dataclass(frozen=True)
class Size:
    """A model and the number of its tokenizer's codes."""

    config: BackboneConfig
    codes: int

    def __str__(self) -> str:
        name = self.config.registered_name
        return f"{name} {self.config.width} × {self.config.num_layers}, {self.codes} codes"


# With many codes the loss is the highest moment, with few of them the backward pass of a block.
SIZES = {
    "llama": [
        Size(LlamaConfig(preset="small"), 8192),
        Size(LlamaConfig(width=384, num_layers=6, num_heads=6, ffn_dim=1536), 1024),
    ],
    "gpt2": [Size(Gpt2Config(preset="small"), 8192)],
    "mamba": [Size(MambaConfig(preset="small"), 8192)],
}


@dataclass(frozen=True)
class Case:
    """One row."""

    size: Size
    precision: str
    recompute: bool
    micro_batches: int
    compiled: bool
    device: str

    def load(self) -> Load:
        """What `toto plan` makes of it."""
        config, tokenizer = self.size.config, DvaeConfig(num_codes=self.size.codes)
        one = Pass(BATCH, LAYOUT.length, self.precision, self.device, self.compiled)  # type: ignore[arg-type]
        block = config.block_memory(one)
        assert block is not None
        return Load(
            size=ModelSize.of(tokenizer, config),
            backbone=config,
            block=block,
            one=one,
            targets=LAYOUT.length,
            micro_batches=self.micro_batches,
        )


def cases(family: str, *, compiled: bool, device: str) -> list[Case]:
    """All rows of a family."""
    return [
        Case(size, precision, recompute, micro_batches, compiled, device)
        for size, precision, (recompute, micro_batches) in product(
            SIZES[family], ("fp32", "bf16"), ((False, 1), (True, 2))
        )
    ]


def measure(case: Case) -> dict[str, int]:
    """Peak bytes of a step, of the tensors and of this process above what it held before."""
    import torch
    from memory import peak_bytes

    from toto.data.batch import Batch
    from toto.model import AutoregressiveModel
    from toto.tasks.next_token import NextTokenTask
    from toto.tokenizers.config import PatchConfig
    from toto.training.config import OptimizerConfig
    from toto.training.engine_local import LocalEngine

    device = torch.device(case.device)

    def engine(config: BackboneConfig, codes: int) -> LocalEngine[Batch]:
        model = AutoregressiveModel(DvaeConfig(num_codes=codes), config)
        if case.recompute:
            model.backbone.recompute_activations()
        # Batches hold codes: the tokenizer is not asked, and this one has no weights.
        task = NextTokenTask(model, PatchConfig(patch_size=8).build())
        made = LocalEngine(
            task,
            OptimizerConfig(),
            lambda step: 1e-4,
            device=device,
            precision=case.precision,  # type: ignore[arg-type]
        )
        if case.compiled:
            made.compile()
        return made

    def batches(codes: int, size: int, frames: int) -> list[Batch]:
        ids = torch.arange(size)
        shape = (size, frames, LAYOUT.height, LAYOUT.width)
        return [
            Batch(None, torch.randint(codes, shape), ids.bool(), ids, ids, ids)
            for _ in range(case.micro_batches)
        ]

    # torch and oneDNN load what they need; a model of one block is small.
    tiny = engine(case.size.config.model_copy(update={"num_layers": 1}), 32)
    tiny.step(batches(32, 1, 1))
    micro_batches = batches(case.size.codes, BATCH, LAYOUT.frames)
    made = []

    def train() -> None:
        made.append(engine(case.size.config, case.size.codes))
        for _ in range(STEPS):
            made[0].step(micro_batches)

    process = peak_bytes(train, device)
    if device.type == "cuda":
        return {"tensors": process, "process": process}
    states = 3 * 4 * ModelSize.of(DvaeConfig(num_codes=case.size.codes), case.size.config).total
    tensors = states + allocated(lambda: made[0].step(micro_batches))
    return {"tensors": tensors, "process": process}


def allocated(run: Callable[[], object]) -> int:
    """The most bytes of tensors at once above those from before, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
    )
    return max(accumulate(change for _, change in changes))


def measured(family: str, index: int, options: argparse.Namespace) -> dict[str, int]:
    """`measure` in a process of its own."""
    arguments = [sys.executable, __file__, "--family", family, "--row", str(index)]
    arguments += ["--device", options.device, *(["--compile"] if options.compile else [])]
    fixed = {} if options.malloc else {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        arguments, env=os.environ | fixed, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print the table; with --row the bytes of one row."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--family", choices=SIZES)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--malloc", action="store_true")
    parser.add_argument("--row", type=int)
    options = parser.parse_args()
    families = [options.family] if options.family else list(SIZES)
    if options.row is not None:
        rows = cases(options.family, compiled=options.compile, device=options.device)
        print(json.dumps(measure(rows[options.row])))
        return
    print(
        f"torch {version('torch')}, {platform.processor() or 'cpu'}, micro-batch {BATCH} of "
        f"{LAYOUT.length}, {'compiled' if options.compile else 'eager'}; MB\n\n"
        "| | precision | recompute | micro-batches | predicted | tensors | ratio | process | ratio "
        "| highest at the |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    for family in families:
        rows = cases(family, compiled=options.compile, device=options.device)
        for index, case in enumerate(rows):
            moment = highest_moment(case.load(), Setting(None, case.recompute))
            found = measured(family, index, options)
            print(
                f"| {case.size} | {case.precision} | {'yes' if case.recompute else 'no'} "
                f"| {case.micro_batches} | {moment.bytes / 1e6:.0f} "
                f"| {found['tensors'] / 1e6:.0f} | {moment.bytes / found['tensors']:.3f} "
                f"| {found['process'] / 1e6:.0f} | {moment.bytes / found['process']:.3f} "
                f"| {moment.name} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
