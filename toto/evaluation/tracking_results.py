"""What tracking scored: every layer beside the copied first mask, and the files that hold it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from toto.files import write_atomic
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from toto.evaluation.tracking_metrics import ObjectScore, TrackingScores

__all__ = ["COPY", "HEAD", "TrackingResults", "cells", "figures"]

COPY = "copy first mask"
HEAD = ("J&F", "J mean", "J recall", "J decay", "F mean", "F recall", "F decay")


@dataclass(frozen=True)
class TrackingResults:
    """The scores of each layer, in rising order, and of the first mask in every frame."""

    layers: Mapping[int, TrackingScores]
    copies: TrackingScores

    @property
    def best(self) -> int:
        """The layer with the highest J&F; among equals the first."""
        return max(self.layers, key=lambda layer: self.layers[layer].j_and_f)

    def summary(self) -> str:
        """The best layer beside the baseline, and how far that can be trusted."""
        best = self.layers[self.best]
        lines = [
            f"best at layer {self.best}: J&F {best.j_and_f:.1%} (J {best.j.mean:.1%}, F "
            f"{best.f.mean:.1%}); {COPY}: {self.copies.j_and_f:.1%} (J {self.copies.j.mean:.1%}, "
            f"F {self.copies.f.mean:.1%})",
            f"{number_of(len(best.objects), 'object')} of "
            f"{number_of(len({one.sequence for one in best.objects}), 'sequence')}.",
        ]
        if len(self.layers) > 1:
            lines.append(
                f"The layer is the best of {len(self.layers)} on the very sequences it is scored "
                "on, as in the paper: the figure is optimistic."
            )
        return "\n".join(lines)

    def write(self, results: Path, summary: Path, settings: Mapping[str, Any]) -> None:
        """Write the scores of every object, and what they come to.

        Args:
            results: JSON lines, one for each object of each layer.
            summary: JSON; the settings, and the figures of each layer.
            settings: what the masks were made with.
        """
        rows = [
            json.dumps({"layer": layer, **_flat(one)}, allow_nan=False) + "\n"
            for layer, scores in self._all()
            for one in scores.objects
        ]
        content = {
            **settings,
            "best_layer": self.best,
            "layers": [{"layer": layer, **figures(scores)} for layer, scores in self._all()],
            "text": self.summary(),
        }
        write_atomic(results, "".join(rows))
        write_atomic(summary, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def _all(self) -> list[tuple[int | str, TrackingScores]]:
        return [*self.layers.items(), (COPY, self.copies)]


def figures(scores: TrackingScores) -> dict[str, float]:
    """The seven figures of the official table, 0..1 (decay may be negative), by their name."""
    j, f = scores.j, scores.f
    values = (scores.j_and_f, j.mean, j.recall, j.decay, f.mean, f.recall, f.decay)
    return dict(zip(HEAD, values, strict=True))


def cells(scores: TrackingScores) -> list[str]:
    """The figures under HEAD, as a table prints them."""
    return [f"{value:.3f}" for value in figures(scores).values()]


def _flat(one: ObjectScore) -> dict[str, Any]:
    return {
        "sequence": one.sequence,
        "object": one.object,
        **{f"j_{name}": value for name, value in asdict(one.j).items()},
        **{f"f_{name}": value for name, value in asdict(one.f).items()},
    }
