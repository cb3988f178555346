"""Several runs on one page: their losses against tokens, and the settings in which they differ."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from toto.analysis import comparison_plots as plots
from toto.analysis.page import write_page
from toto.analysis.records import Number, TrainPoint, read_metrics
from toto.analysis.report import Section
from toto.data.config import TOGETHER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from toto.analysis.panels import Panel

__all__ = [
    "ComparedRun",
    "Comparison",
    "differing_settings",
    "read_losses",
    "results",
    "validation_losses",
    "write_comparison",
]

NO_VALUE = "–"
NAMED = 3  # runs whose names fit into a title
LAST_SHARE = 0.02
"""Of the logged steps: what a run's last training loss is the mean of."""


@dataclass(frozen=True)
class HeldOut:
    """The validation loss of a source; whatever else was measured is not compared."""

    loss: Number


@dataclass(frozen=True)
class LossEvaluation:
    """One evaluation, its losses alone."""

    step: int
    tokens: int
    sources: dict[str, HeldOut]


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        number: its place among the runs, from 0; decides its colour.
        label: what figures and tables call it.
        unit: of its loss.
        target: what its loss is a loss of: losses of other targets cannot be compared with it.
        parameters: of the model; None of a tokenizer's run.
        steps: that it shall have.
        command: that began it.
        settings: of its recipe, by dotted key.
        train: the logged steps.
        evals: the evaluations.
    """

    number: int
    label: str
    unit: str
    target: str
    parameters: int | None
    steps: int
    command: str
    settings: Mapping[str, Any]
    train: Sequence[TrainPoint]
    evals: Sequence[LossEvaluation]


@dataclass(frozen=True)
class Comparison:
    """What the page shows.

    Attributes:
        runs: at least two.
        command: that made the page.
    """

    runs: Sequence[ComparedRun]
    command: str


TRAIN_POINT = TypeAdapter(TrainPoint)
EVALUATION = TypeAdapter(LossEvaluation)


def read_losses(folder: Path) -> tuple[list[TrainPoint], list[LossEvaluation]]:
    """The logged steps and the losses of the evaluations of a run of any verb.

    Raises:
        UserError: there is no such run; the message lists the runs beside it.
        DataError: a line that is not as toto writes it, with file and line.
    """
    return read_metrics(folder, TRAIN_POINT, EVALUATION)


def write_comparison(out: Path, comparison: Comparison) -> None:
    """Write the page to `out`; an older one is replaced only when the new one is complete."""
    runs = comparison.runs
    write_page(
        out,
        "comparison.html",
        {
            "content": {"name": _name(runs), "facts": {}},
            "comparison": comparison,
            "caution": _caution(runs),
            "results": results(runs),
            "results_head": RESULTS_HEAD,
            "validation": validation_losses(runs),
            "validation_head": ["validation loss", *_sources(runs)],
            "sections": _sections(comparison),
            "settings": differing_settings(runs),
            "settings_head": ["setting", *(run.label for run in runs)],
        },
    )


RESULTS_HEAD = (
    "run", "parameters", "steps", "tokens", "training loss", "tokens/s", "utilisation",
)  # fmt: skip


def results(runs: Sequence[ComparedRun]) -> list[list[str]]:
    """A row for each run: how large, how far, its last losses, and its median speed.

    The training loss is the mean over the last 2 % of the logged steps.
    """
    return [
        [
            run.label,
            NO_VALUE if run.parameters is None else f"{run.parameters / 1e6:,.2f} M",
            f"{run.train[-1].step if run.train else 0:,} of {run.steps:,}",
            f"{run.train[-1].tokens if run.train else 0:,}",
            _mean_of_last(run.train),
            _median([point.tokens_per_s for point in run.train], "{:,.0f}"),
            _median([point.utilisation for point in run.train], "{:.1%}"),
        ]
        for run in runs
    ]


def validation_losses(runs: Sequence[ComparedRun]) -> list[list[str]]:
    """Return a row for each run: its label, then its last loss on each source; none without."""
    sources = _sources(runs)
    if not sources:
        return []
    return [[run.label, *(_last_loss(run.evals, source) for source in sources)] for run in runs]


def differing_settings(runs: Sequence[ComparedRun]) -> list[list[str]]:
    """The settings that are not the same in all runs: key, then the value in each run."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    rows = [[key, *(_shown(run.settings, key) for run in runs)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _sections(comparison: Comparison) -> list[Section]:
    runs = comparison.runs
    trained = [run for run in runs if run.train]
    return [
        Section(
            "Training loss against tokens",
            "As in the paper's Figure 2; lower is better. The line is smoothed, the logged values "
            "are pale. Values above the loss after the first 3% of a run's tokens are cut off.",
            [
                plots.training_loss(of_kind, of_kind[0].unit, f"Training loss{kind}")
                for kind, of_kind in _kinds(trained).items()
            ],
            comparison.command,
        ),
        Section(
            "Validation loss against tokens",
            "On the validation data of each source. Sources are matched by their names in the "
            "recipes.",
            _validation_panels(runs),
            comparison.command,
        ),
    ]


def _validation_panels(runs: Sequence[ComparedRun]) -> list[Panel]:
    kinds = _kinds(runs)
    panels = []
    for source in _sources(runs):
        for kind, of_kind in kinds.items():
            evaluated = [run for run in of_kind if source in _evaluated(run)]
            if evaluated:
                title = f"Validation loss on {source}{kind}"
                panels.append(plots.validation_loss(evaluated, source, evaluated[0].unit, title))
    return panels


def _kinds(runs: Sequence[ComparedRun]) -> dict[str, list[ComparedRun]]:
    """Group the runs whose losses compare: the same target in the same unit.

    Returns:
        What the titles of a group's figures end with → its runs; one empty ending for one group.
    """
    groups: dict[tuple[str, str], list[ComparedRun]] = {}
    for run in runs:
        groups.setdefault((run.unit, run.target), []).append(run)
    if len(groups) == 1:
        return {"": list(runs)}
    return {f": {_name(group)}": group for group in groups.values()}


def _caution(runs: Sequence[ComparedRun]) -> str | None:
    """What a reader must know before comparing the numbers; None where they compare."""
    targets = dict.fromkeys(run.target for run in runs)
    if len(targets) == 1:
        return None
    groups = [", ".join(run.label for run in runs if run.target == target) for target in targets]
    return (
        "These runs predict different targets. Losses can be compared only between runs with the "
        "same tokenizer at the same resolution, so each such group has its own figures: "
        + "; ".join(groups)
        + "."
    )


def _name(runs: Sequence[ComparedRun]) -> str:
    labels = [run.label for run in runs]
    return ", ".join(labels) if len(labels) <= NAMED else f"{len(labels)} runs"


def _sources(runs: Sequence[ComparedRun]) -> list[str]:
    """The sources of all runs' evaluations; TOGETHER only beside several."""
    names = list(dict.fromkeys(source for run in runs for source in _evaluated(run)))
    return [name for name in names if name != TOGETHER] if len(names) == 2 else names


def _evaluated(run: ComparedRun) -> list[str]:
    return list(dict.fromkeys(source for point in run.evals for source in point.sources))


def _mean_of_last(points: Sequence[TrainPoint]) -> str:
    losses = [point.loss for point in points[-max(round(LAST_SHARE * len(points)), 1) :]]
    return f"{statistics.fmean(losses):.4f}" if losses else NO_VALUE


def _median(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return form.format(statistics.median(known)) if known else NO_VALUE


def _last_loss(evals: Sequence[LossEvaluation], source: str) -> str:
    losses = [point.sources[source].loss for point in evals if source in point.sources]
    return f"{losses[-1]:.4f}" if losses else NO_VALUE


def _shown(settings: Mapping[str, Any], key: str) -> str:
    if key not in settings:
        return NO_VALUE
    value = settings[key]
    return value if isinstance(value, str) else json.dumps(value)
