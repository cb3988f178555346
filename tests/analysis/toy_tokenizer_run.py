"""A run directory as `toto tokenizer train` leaves it, with made-up numbers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from toy_run import eval_line, train_line, write_lines

if TYPE_CHECKING:
    from pathlib import Path

NUM_CODES = 16


def tokenizer_line(step: int, **metrics: float) -> dict[str, Any]:
    return train_line(step) | {"metrics": {"nll": 1.0 - step / 100, "psnr": 15.0} | metrics}


def quality(psnr: float, used: float = 0.5, perplexity: float = 6.25) -> dict[str, Any]:
    return {
        "loss": 0.5,
        "nll": 0.25,
        "psnr": psnr,
        "codebook_use": used,
        "perplexity": perplexity,
    }


def write_tokenizer_run(folder: Path, *sources: str) -> None:
    """Steps up to 100 and an evaluation at 50 and 100; PSNR 21, 22, ... dB and 20 for all."""
    values = {name: quality(21.0 + index) for index, name in enumerate(sources)}
    values["all"] = quality(20.0, used=0.75, perplexity=8.5)
    evals = [eval_line(step, values) for step in (50, 100)]
    train = [tokenizer_line(step) for step in range(10, 60, 10)]
    train += [tokenizer_line(step, generator=-0.125) for step in range(60, 101, 10)]
    write_lines(folder / "metrics.jsonl", [*train, *evals])
    counts = [800, *[25] * 7, *[0] * 8]
    record = dict.fromkeys((*sources, "all"), counts)
    (folder / "code_counts.json").write_text(json.dumps(record))
    baselines = {
        "cell mean": dict.fromkeys((*sources, "all"), 17.125),
        "k-means": dict.fromkeys((*sources, "all"), 18.5),
    }
    (folder / "baselines.json").write_text(json.dumps(baselines))
