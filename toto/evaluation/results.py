"""What the probes scored: a row each, the best of each pooling, and the files that hold them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from toto.files import disk_errors, write_atomic

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ProbeResults", "ProbeRow", "wilson_interval"]

NORMAL_QUANTILE_95 = 1.959963984540054  # two-sided


@dataclass(frozen=True)
class ProbeRow:
    """One probe's score.

    Attributes:
        layer: 0 the embedding, k the output of block k.
        head: the pooling's name, with its options where they are not the default.
        lr: peak learning rate.
        accuracy: share of validation samples classified right, 0..1.
        low: lower end of its 95 % Wilson interval.
        high: upper end.
        loss: mean training cross-entropy of the last epoch in nats; None if the probe diverged,
            or was trained beside the model's own loss.
        chance: accuracy of guessing, 1 / classes.
    """

    layer: int
    head: str
    lr: float
    accuracy: float
    low: float
    high: float
    loss: float | None
    chance: float


@dataclass(frozen=True)
class ProbeResults:
    """All rows, by layer, head and learning rate, and what they were measured on."""

    rows: tuple[ProbeRow, ...]
    train_samples: int
    validation_samples: int
    epochs: float

    @property
    def heads(self) -> list[str]:
        """The poolings, in the recipe's order."""
        return list(dict.fromkeys(row.head for row in self.rows))

    def best(self, head: str | None = None) -> ProbeRow:
        """The most accurate row, of one pooling or of all; among equals the first."""
        rows = [row for row in self.rows if head in (None, row.head)]
        return max(rows, key=lambda row: row.accuracy)

    def summary(self) -> str:
        """The best layer of each pooling, and how far the figures can be trusted."""
        lines = [
            f"{head}: best at layer {row.layer} (lr {row.lr:g}): {row.accuracy:.1%}, "
            f"95 % interval {row.low:.1%} to {row.high:.1%}; chance {row.chance:.1%}"
            for head in self.heads
            for row in [self.best(head)]
        ]
        compared = len(self.rows) // len(self.heads)
        lines.append(
            f"{self.train_samples} training samples, {self.epochs:.3g} epochs, "
            f"{self.validation_samples} validation samples."
        )
        if compared > 1:
            lines.append(
                f"Layer and learning rate are the best of {compared} on the validation samples "
                "themselves, as in the paper: the figure leans high, and the interval, which "
                "holds for one probe, does not cover the choice."
            )
        return "\n".join(lines)

    def write(self, folder: Path, *, source: str, step: int) -> None:
        """Write `results.jsonl`, a row a line, and `summary.json`; each replaces an older one.

        Args:
            folder: made if it is missing.
            source: what the samples are of.
            step: of the checkpoint that was probed.

        Raises:
            RunError: the disk is full or refuses.
        """
        rows = "".join(json.dumps(asdict(row), allow_nan=False) + "\n" for row in self.rows)
        summary = {
            "source": source,
            "step": step,
            "best": {head: asdict(self.best(head)) for head in self.heads},
            "train_samples": self.train_samples,
            "validation_samples": self.validation_samples,
            "epochs": self.epochs,
            "text": self.summary(),
        }
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / "results.jsonl", rows)
            write_atomic(folder / "summary.json", text)


def wilson_interval(hits: float, count: float) -> tuple[float, float]:
    """The 95 % interval of a share, after Wilson (1927): sound near 0 and 1 and for few samples."""
    z2 = NORMAL_QUANTILE_95**2
    share = hits / count
    centre = share + z2 / (2 * count)
    spread = NORMAL_QUANTILE_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    scale = 1 + z2 / count
    return max((centre - spread) / scale, 0.0), min((centre + spread) / scale, 1.0)
