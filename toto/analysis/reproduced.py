"""What the runs of this installation say of the paper's numbers, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from toto.analysis.evaluations import CLASSES, FINETUNED, PROBES, results_of_kind
from toto.analysis.plan import table4_macs
from toto.analysis.records import METRICS, json_object, parse
from toto.analysis.runs import peaks, read_run
from toto.backbones.config import LlamaConfig
from toto.model_size import ModelSize
from toto.recipe.reader import read_probe_recipe, read_recipe
from toto.recipe.schemas import TrainRecipe
from toto.tasks.probe_settings import FREE_SETTINGS
from toto.tokenizers.config import VqganConfig
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from toto.analysis.evaluations import Probing
    from toto.analysis.paper import Entry, Measure, Row
    from toto.analysis.runs import RunRecord

__all__ = [
    "SMALL",
    "SMALL_NOTE",
    "SMALL_PROBE",
    "Filled",
    "Ours",
    "filled",
    "recipe_of",
    "results_of",
    "table_cells",
]

SMALL = "_small"
# How the tables of docs/records are probed: minutes on a laptop; the paper's size has protocols.
SMALL_PROBE: dict[str, Any] = {
    "max_samples": 10_000, "epochs": 5, "batch_size": 64, "learning_rates": [0.003],
}  # fmt: skip
SMALL_NOTE = (
    "small: other data, size and schedule than the paper's; only the rows can be compared with "
    "each other"
)
NOT_RUN = "not run"
TABLE_15_TOKENIZER = VqganConfig(num_codes=1024)
DAVIS_SEQUENCES = 30  # of DAVIS-2017's val.txt
LAST_SHARE = 0.02  # of the logged steps, whose mean loss is that at the end: as comparison.py's


@dataclass(frozen=True)
class Ours:
    """One number of ours.

    Attributes:
        value: in the unit of the column.
        note: what belongs to it: the interval, the layer.
    """

    value: float
    note: str = ""


@dataclass(frozen=True)
class Filled:
    """A row with what was found.

    Attributes:
        row: of the paper.
        ours: one a column; None where it was not run.
        run: the run that was read, or None.
        cost: tokens and time of its training, in words.
        departures: how it was not made as its recipe and its protocol say, in words; empty where
            it was.
    """

    row: Row
    ours: tuple[Ours | None, ...]
    run: Path | None
    cost: str
    departures: tuple[str, ...] = ()


def recipe_of(row: Row, *, small: bool) -> str | None:
    """The recipe of a row, at the paper's size or small; its run has the same name."""
    if row.recipe is None or (small and not row.small):
        return None
    return f"{row.recipe}{SMALL}" if small else row.recipe


def results_of(entry: Entry, row: Row, *, small: bool) -> str | None:
    """What a row's numbers are read from: a protocol, PROBES, FINETUNED, CLASSES or `track`."""
    return PROBES if small else row.results or entry.results


def filled(entry: Entry, runs: Path, *, small: bool) -> list[Filled]:
    """A table with what the runs in a folder say.

    Raises:
        DataError: a record of a run that cannot be read.
        RecipeError: a recipe that cannot be read.
    """
    return [_fill(entry, row, runs, small=small) for row in entry.rows if row.small or not small]


def table_cells(
    entry: Entry, rows: Sequence[Filled], *, small: bool
) -> tuple[list[str], list[list[str]]]:
    """Head and cells: of each column paper, ours and, not of small runs, the gap; run and cost.

    A column that nothing stands in is left out.
    """
    names = ["ours, small"] if small else ["ours", "gap"]
    head = [""]
    for column in entry.columns:
        head += [f"{column}: paper", *names]
    head += ["of", "run", "cost"]
    cells = [_cells(one, small=small) for one in rows]
    told = [place for place in range(len(head)) if any(row[place] for row in cells)]
    return [head[place] for place in told], [[row[place] for place in told] for row in cells]


def _cells(one: Filled, *, small: bool) -> list[str]:
    cells, notes = [one.row.label], []
    for number, ours in zip(one.row.paper, one.ours, strict=True):
        if ours is None:
            shown = [NOT_RUN if one.row.is_ours else "", ""]
        else:
            gap = "" if number is None else f"{ours.value - number:+.3g}"
            shown = [f"{ours.value:.4g}", gap]
            notes.append(ours.note)
        cells += ["" if number is None else f"{number:g}", *shown[: 1 if small else 2]]
    notes += one.departures
    return [*cells, "; ".join(filter(None, notes)), str(one.run or ""), one.cost]


def _fill(entry: Entry, row: Row, runs: Path, *, small: bool) -> Filled:
    recipe = recipe_of(row, small=small)
    if not entry.measures or not row.is_ours:
        return Filled(row, (None,) * len(entry.columns), None, "")
    name = recipe or row.run
    folder = None if name is None or not (runs / name / METRICS).is_file() else runs / name
    record = None if folder is None else read_run(folder)
    asked = _Asked(entry, row, recipe, small, record)
    ours = tuple(MEASURES[measure](asked) for measure in entry.measures)
    told = tuple(_departures(asked)) if any(ours) else ()
    return Filled(row, ours, folder, _cost(record), told)


@dataclass(frozen=True)
class _Asked:
    """What a measure is taken of."""

    entry: Entry
    row: Row
    recipe: str | None
    small: bool
    record: RunRecord | None

    @property
    def pool(self) -> str | None:
        return self.row.pool or self.entry.pool

    @property
    def results(self) -> str | None:
        return results_of(self.entry, self.row, small=self.small)

    @cached_property
    def probing(self) -> Probing | None:
        """Of the run's results by the protocol the one with the fewest departures, then newest.

        Others are of fewer samples, say, or of an earlier checkpoint.
        """
        if self.record is None or self.results is None:
            return None
        found = [one for one in self.record.probings if one.name == self.results]
        return min(found, key=lambda one: len([*_probing_departures(self, one)]), default=None)


def _probe(asked: _Asked) -> Ours | None:
    """Accuracy in per cent, with the pooling of the paper's number and at its layer.

    A small run may have been probed with another pooling, and has other layers: the best is taken
    then, and named.
    """
    if asked.probing is None:
        return None
    found = asked.probing.rows
    if not asked.small and asked.entry.layer is not None:
        found = [row for row in found if row.layer == asked.entry.layer]
    scores = [score for score in peaks(found) if score.head == asked.pool]
    if not scores and asked.small and asked.row.pool is None:
        scores = peaks(found)
    if not scores:
        return None
    score = scores[0]
    interval = f"{100 * score.low:.1f} to {100 * score.high:.1f}"
    return Ours(100 * score.accuracy, f"{score.head}, {interval}, layer {score.layer}")


@dataclass(frozen=True)
class Tracked:
    """Of track/summary.json what is shown: figures by name, of each layer, and of what they are."""

    best_layer: int
    layers: list[dict[str, int | str | float]]
    step: int
    resolution: int
    frames: dict[str, int]


TRACKED = TypeAdapter(Tracked)


def _tracked(asked: _Asked) -> Tracked | None:
    """What was tracked at the resolution of the row: on most sequences, then last."""
    if asked.record is None:
        return None
    found = []
    for path in results_of_kind(asked.record.folder, "track"):
        tracked = parse(TRACKED, json_object(path.read_bytes(), str(path)), str(path))
        if tracked.resolution == asked.row.resolution:
            found.append(tracked)
    return max(found, key=lambda one: (len(one.frames), one.step), default=None)


def _track(asked: _Asked, figure: str) -> Ours | None:
    """A figure of DAVIS at the layer with the best J&F, in per cent."""
    if (tracked := _tracked(asked)) is None:
        return None
    best = next(one for one in tracked.layers if one["layer"] == tracked.best_layer)
    return Ours(100 * float(best[figure]), f"layer {tracked.best_layer}")


def _loss(asked: _Asked) -> Ours | None:
    if asked.record is None or not asked.record.train:
        return None
    lines = asked.record.train
    last = lines[-max(round(LAST_SHARE * len(lines)), 1) :]
    return Ours(sum(line.loss for line in last) / len(last), f"step {lines[-1].step:,}")


def _parameters(asked: _Asked) -> Ours | None:
    """From the recipe or the preset alone: nothing has to be trained."""
    if asked.recipe is not None:
        return Ours(_size(asked.recipe)[0] / 1e6)
    backbone = LlamaConfig.model_validate({"preset": asked.row.preset})
    return Ours(ModelSize.of(TABLE_15_TOKENIZER, backbone).total / 1e6)


def _compute(asked: _Asked) -> Ours | None:
    """As the paper counts it, of the whole way to the row; from the recipes alone."""
    assert asked.recipe is not None
    names = [asked.recipe]
    if asked.row.after is not None:
        names.append(asked.row.after + (SMALL if asked.small else ""))
    return Ours(sum(table4_macs(*_size(name)) for name in names) / 1e17)


def _size(name: str) -> tuple[int, int]:
    """Parameters, and the visual tokens of the run."""
    recipe = read_recipe(name)
    assert isinstance(recipe, TrainRecipe)
    size = ModelSize.of(recipe.tokenizer, recipe.backbone, recipe.target_tokenizer)
    sequences = recipe.training.steps * recipe.batch_sequences
    return size.total, sequences * recipe.layout.num_visual


MEASURES: dict[Measure, Callable[[_Asked], Ours | None]] = {
    "track J&F": partial(_track, figure="J&F"),
    "track J": partial(_track, figure="J mean"),
    "track F": partial(_track, figure="F mean"),
    "probe": _probe,
    "loss": _loss,
    "parameters": _parameters,
    "compute": _compute,
}


def _departures(asked: _Asked) -> Iterator[str]:
    """How a row was not made as its recipe and its protocol say."""
    record = asked.record
    if record is None:
        return
    if asked.recipe is not None:
        steps = read_recipe(asked.recipe).training.steps
        if record.last_step < steps:
            yield f"trained {record.last_step:,} of {steps:,} steps"
    if "probe" in asked.entry.measures:
        if asked.probing is not None:
            yield from _probing_departures(asked, asked.probing)
    elif any(measure.startswith("track") for measure in asked.entry.measures):
        tracked = _tracked(asked)
        if tracked is None:
            return
        if len(tracked.frames) != DAVIS_SEQUENCES:
            sequences = number_of(len(tracked.frames), "sequence")
            yield f"{sequences}, and the paper has {DAVIS_SEQUENCES}"
        yield from _measured_early(tracked.step, record)


def _probing_departures(asked: _Asked, probing: Probing) -> Iterator[str]:
    """How probes were not made as their protocol says, on the last checkpoint."""
    assert asked.record is not None
    yield from _changed_settings(asked, probing)
    if probing.old_norm and asked.pool in ("average", None):
        yield "average pooling normalised over tokens, as in earlier versions: probe again"
    yield from _measured_early(probing.step, asked.record)


def _measured_early(step: int | None, record: RunRecord) -> Iterator[str]:
    if step is not None and step < record.last_step:
        yield f"measured at step {step:,}, before the last"


def _changed_settings(asked: _Asked, probing: Probing) -> Iterator[str]:
    """What `--set`, `--pool` and `--layers` changed of a protocol; others have none."""
    free = FREE_SETTINGS if asked.entry.layer is None else FREE_SETTINGS | {"layers"}
    if asked.small:
        protocol, name = SMALL_PROBE, "`toto ablate`"
    elif probing.name not in (PROBES, CLASSES, FINETUNED):
        name = probing.name
        protocol = read_probe_recipe(name).probes.model_dump(mode="json")
    else:
        return
    found: dict[str, Any] = probing.protocol.get("probes") or {}
    if not found:
        yield "its settings are not on record"
        return
    changed = [key for key in protocol if key not in free and found.get(key) != protocol[key]]
    if changed:
        yield f"other {', '.join(changed)} than {name} has"


def _cost(record: RunRecord | None) -> str:
    """Tokens, and the hours of its training steps at their logged speed."""
    if record is None or not record.train:
        return ""
    lines = record.train
    before = [0, *(line.tokens for line in lines[:-1])]
    seconds = sum(
        (line.tokens - seen) / line.tokens_per_s for line, seen in zip(lines, before, strict=True)
    )
    return f"{lines[-1].tokens / 1e6:,.1f} M tokens, {seconds / 3600:.2g} h"
