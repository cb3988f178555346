"""What the probes scored: a row each, scores over seeds, and the files that hold them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from toto.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "ProbeResults",
    "ProbeRow",
    "ProbeScore",
    "best_by_layer",
    "scores",
    "t_interval",
    "wilson_interval",
]

NORMAL_QUANTILE_95 = 1.959963984540054  # two-sided
# Of Student's t with 1 to 30 degrees of freedom, two-sided.
T_QUANTILES_95 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip


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
        weight_decay: of its matrices.
        seed: of its initial weights.
    """

    layer: int
    head: str
    lr: float
    accuracy: float
    low: float
    high: float
    loss: float | None
    chance: float
    weight_decay: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class ProbeScore:
    """Probes that differ in their seed alone.

    Attributes:
        layer: as in ProbeRow.
        head: as in ProbeRow.
        lr: as in ProbeRow.
        weight_decay: as in ProbeRow.
        accuracy: mean over the seeds.
        low: lower end of the 95 % Wilson interval of one probe, mean over the seeds: what the
            number of validation samples leaves open.
        high: its upper end.
        chance: as in ProbeRow.
        seeds: how many there are.
        seed_low: lower end of the 95 % t interval of the mean over seeds: what initial weights
            leave open; None for one seed.
        seed_high: its upper end.
    """

    layer: int
    head: str
    lr: float
    weight_decay: float
    accuracy: float
    low: float
    high: float
    chance: float
    seeds: int
    seed_low: float | None
    seed_high: float | None

    def seed_text(self) -> str:
        """The interval over seeds for people, empty for one seed."""
        if self.seed_low is None or self.seed_high is None:
            return ""
        return f"{self.seed_low:.1%} to {self.seed_high:.1%} over {self.seeds} seeds"


@dataclass(frozen=True)
class ProbeResults:
    """All rows, by layer, head, learning rate, decay and seed, and what they were measured on."""

    rows: tuple[ProbeRow, ...]
    train_samples: int
    validation_samples: int
    epochs: float

    @property
    def heads(self) -> list[str]:
        """The poolings, in the recipe's order."""
        return list(dict.fromkeys(row.head for row in self.rows))

    def scores(self) -> list[ProbeScore]:
        """The rows over their seeds, in the same order."""
        return scores(self.rows)

    def best(self, head: str | None = None) -> ProbeScore:
        """The most accurate score, of one pooling or of all; among equals the first."""
        chosen = [score for score in self.scores() if head in (None, score.head)]
        return max(chosen, key=lambda score: score.accuracy)

    def summary(self) -> str:
        """The best layer of each pooling, and how far the figures can be trusted."""
        lines = [self._line(self.best(head)) for head in self.heads]
        compared = len(self.scores()) // len(self.heads)
        lines.append(
            f"{self.train_samples} training samples, {self.epochs:.3g} epochs, "
            f"{self.validation_samples} validation samples."
        )
        if compared > 1:
            lines.append(
                f"Layer, learning rate and weight decay are the best of {compared} on the "
                "validation samples themselves, as in the paper: the figure is optimistic, and the "
                "interval, which is that of a single probe, does not account for the choice."
            )
        if any(score.seeds > 1 for score in self.scores()):
            lines.append(
                "Seeds differ in their initial weights; the order of samples is that of data_seed."
            )
        return "\n".join(lines)

    def _line(self, best: ProbeScore) -> str:
        decay = f", weight decay {best.weight_decay:g}" if best.weight_decay else ""
        over_seeds = f"; {best.seed_text()}" if best.seed_text() else ""
        return (
            f"{best.head}: best at layer {best.layer} (lr {best.lr:g}{decay}): "
            f"{best.accuracy:.1%}, 95 % interval {best.low:.1%} to {best.high:.1%}{over_seeds}; "
            f"chance {best.chance:.1%}"
        )

    def write(
        self,
        folder: Path,
        *,
        evaluation: str,
        source: str,
        step: int,
        protocol: Mapping[str, object],
        conditions: Mapping[str, object],
    ) -> None:
        """Write `results.jsonl`, a row a line, and `summary.json`.

        Args:
            folder: to write to.
            evaluation: what kind of result it is.
            source: what the samples are of.
            step: of the checkpoint that was probed.
            protocol: every choice, as plain values of JSON.
            conditions: what the protocol leaves to the run and the machine, likewise.

        Raises:
            OSError: the disk is full or refuses.
        """
        rows = "".join(json.dumps(asdict(row), allow_nan=False) + "\n" for row in self.rows)
        summary = {
            "evaluation": evaluation,
            "source": source,
            "step": step,
            "protocol": protocol,
            "conditions": conditions,
            "best": {head: asdict(self.best(head)) for head in self.heads},
            "train_samples": self.train_samples,
            "validation_samples": self.validation_samples,
            "epochs": self.epochs,
            "text": self.summary(),
        }
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        write_atomic(folder / "results.jsonl", rows)
        write_atomic(folder / "summary.json", text)


def scores(rows: Iterable[ProbeRow]) -> list[ProbeScore]:
    """Rows that differ in their seed alone as one score each, in the order of the first of them."""
    cells: dict[tuple[int, str, float, float], list[ProbeRow]] = {}
    for row in rows:
        cells.setdefault((row.layer, row.head, row.lr, row.weight_decay), []).append(row)
    found = []
    for key, cell in cells.items():
        values = [row.accuracy for row in cell]
        over_seeds = t_interval(values) if len(cell) > 1 else (None, None)
        low, high = fmean(row.low for row in cell), fmean(row.high for row in cell)
        found.append(
            ProbeScore(*key, fmean(values), low, high, cell[0].chance, len(cell), *over_seeds)
        )
    return found


def best_by_layer(rows: Iterable[ProbeRow]) -> dict[str, list[ProbeScore]]:
    """For each pooling the best score of every layer, in order of layers.

    Of equal accuracies the first counts, as in `ProbeResults.best`.
    """
    best: dict[str, dict[int, ProbeScore]] = {}
    for score in scores(rows):
        layers = best.setdefault(score.head, {})
        if score.layer not in layers or score.accuracy > layers[score.layer].accuracy:
            layers[score.layer] = score
    return {head: [layers[layer] for layer in sorted(layers)] for head, layers in best.items()}


def t_interval(shares: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of 2 to 31 shares, after Student (1908), within 0..1."""
    centre = fmean(shares)
    spread = T_QUANTILES_95[len(shares) - 2] * stdev(shares) / math.sqrt(len(shares))
    return max(centre - spread, 0.0), min(centre + spread, 1.0)


def wilson_interval(hits: float, count: float) -> tuple[float, float]:
    """The 95 % interval of a share, after Wilson (1927): sound near 0 and 1 and for few samples."""
    z2 = NORMAL_QUANTILE_95**2
    share = hits / count
    centre = share + z2 / (2 * count)
    spread = NORMAL_QUANTILE_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    scale = 1 + z2 / count
    return max((centre - spread) / scale, 0.0), min((centre + spread) / scale, 1.0)
