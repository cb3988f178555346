"""Probes trained together against one after another: all layers × 2 poolings × 4 learning rates.

Together, the model reads the data once for all probes. One after another, each probe reads for
itself, no further than its own layer, and keeps its features in memory as the bank does. Three of
these are measured, at the first, the middle and the last layer, whose mean depth is that of all;
the sum over all probes is extrapolated from them. Their accuracies must be those of the bank.

The model is LLaMA 256 × 6 with random weights (5.1M parameters), the data are random codes of which
a few tell the class.

    python benchmarks/probe.py [--quick]
"""

from __future__ import annotations

import argparse
import platform
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toto.backbones.config import LlamaConfig
from toto.data.batch import Batch
from toto.evaluation.classification import run_probes
from toto.model import AutoregressiveModel
from toto.tasks.probe_settings import ProbeSettings
from toto.tokenizers.config import DvaeConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from toto.evaluation.results import ProbeResults

CLASSES, CODES, SIDE = 10, 1024, 16
TELLING = 3  # tokens of a picture that tell its class
RATES = (1e-3, 3e-3, 1e-2, 3e-2)


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures in memory, as codes."""

    codes_SHW: Tensor
    label_S: Tensor

    @classmethod
    def drawn(cls, count: int, seed: int) -> Pictures:
        """Random codes; some places hold the number of the class."""
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(CLASSES, CODES, (count, SIDE * SIDE), generator=generator)
        label = torch.randint(CLASSES, (count,), generator=generator)
        places = torch.rand(codes.shape, generator=generator).topk(TELLING).indices
        codes.scatter_(1, places, label[:, None].expand(-1, TELLING))
        return cls(codes.view(count, SIDE, SIDE), label)

    def __len__(self) -> int:
        return len(self.label_S)

    def batches(self, order: Sequence[int], size: int, draw: int = 0) -> Iterator[Batch]:
        """See `LabelledClips.batches`."""
        for first in range(0, len(order), size):
            rows = torch.tensor(order[first : first + size])
            zeros = torch.zeros(len(rows), dtype=torch.int64)
            codes = self.codes_SHW[rows, None]
            yield Batch(None, codes, zeros == 0, zeros, rows, self.label_S[rows])


@dataclass(frozen=True)
class Setup:
    """What both sides share."""

    model: AutoregressiveModel
    train: Pictures
    validation: Pictures

    def probe(self, settings: ProbeSettings) -> tuple[float, float, ProbeResults]:
        """Seconds by the clock, seconds of the processor over all threads, and results."""
        start, worked = time.perf_counter(), time.process_time()
        results = run_probes(
            self.model,
            torch.nn.Identity(),  # the pictures are codes already
            self.train,
            self.validation,
            settings=settings,
            num_classes=CLASSES,
            precision="fp32",
        )
        return time.perf_counter() - start, time.process_time() - worked, results


def main() -> None:
    """Measure and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run at all")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    sizes = (32, 2, 2, 64) if quick else (256, 6, 8, 704)
    backbone = LlamaConfig(
        **dict(zip(("width", "num_layers", "num_heads", "ffn_dim"), sizes, strict=True))
    )
    model = AutoregressiveModel(DvaeConfig(num_codes=CODES), backbone)
    count = 100 if quick else 1000
    setup = Setup(model, Pictures.drawn(count, 1), Pictures.drawn(count // 5, 2))
    settings = ProbeSettings(learning_rates=RATES, epochs=3, cache_gb=16, feature_dtype="fp32")
    Setup(model, Pictures.drawn(32, 1), Pictures.drawn(32, 2)).probe(settings)  # imports, allocates
    seconds, worked, bank = setup.probe(settings)
    depth = backbone.num_layers
    probes = len(bank.rows)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"torch {torch.__version__}, {platform.processor() or 'cpu'}, "
        f"{torch.get_num_threads()} threads; {parameters / 1e6:.1f}M parameters, {count} training "
        f"and {count // 5} validation pictures of {SIDE}×{SIDE} tokens, 3 epochs, {probes} probes\n"
    )
    print("| | seconds | of the CPU | accuracy | in the bank |\n|---|---|---|---|---|")
    print(f"| all {probes} together | {seconds:.1f} | {worked:.1f} | | |", flush=True)
    alone = []
    chosen = (
        (0, "average", RATES[1]),
        (depth // 2, "attention", RATES[0]),
        (depth, "average", RATES[2]),
    )
    for layer, head, rate in chosen:
        one = settings.model_dump(mode="json") | {
            "layers": [layer], "heads": [head], "learning_rates": [rate],
        }  # fmt: skip
        *taken, results = setup.probe(ProbeSettings.model_validate(one))
        (row,) = results.rows
        same = next(r for r in bank.rows if (r.layer, r.head, r.lr) == (layer, head, rate))
        print(
            f"| alone: {head}, layer {layer}, lr {rate:g} | {taken[0]:.1f} | "
            f"{taken[1]:.1f} | {row.accuracy:.4f} | "
            f"{same.accuracy:.4f} |",
            flush=True,
        )
        if row.accuracy != same.accuracy:
            raise SystemExit("the bank and the probe alone differ")
        alone.append(taken)
    by_clock, by_cpu = (probes * sum(some) / len(alone) for some in zip(*alone, strict=True))
    print(
        f"| {probes} one after another, extrapolated from these three | {by_clock:.0f} | "
        f"{by_cpu:.0f} | | |"
    )
    print(f"\nratio: {by_clock / seconds:.1f} by the clock, {by_cpu / worked:.1f} of the CPU")


if __name__ == "__main__":
    main()
