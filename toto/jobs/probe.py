"""`toto probe`: every layer of a frozen model, on labelled data of its run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from toto.analysis.figures import draw_layer_curve
from toto.data.clips import LabelledDataset
from toto.errors import DataError, RecipeError, UserError
from toto.evaluation.classification import run_probes
from toto.evaluation.config import ProbeSettings
from toto.jobs.console import progress_bar, say
from toto.jobs.sources import Source, open_sources
from toto.jobs.trained import Trained, import_all, load_trained, resolve_run
from toto.recipe.messages import explain
from toto.recipe.overrides import apply_override
from toto.recipe.yaml_reader import parse_value

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["start_probing"]

FOLDER = "probe"
CURVE = "curve.png"


def start_probing(
    run: str | None,
    *,
    heads: Sequence[str],
    layers: str,
    source: str | None,
    overrides: Sequence[str],
    imports: Sequence[str],
) -> None:
    """Probe a run and write results.jsonl, summary.json and curve.png in RUN/probe.

    Args:
        run: a run or checkpoint; None takes the newest next-token checkpoint under ./runs.
        heads: pooling heads, each a name or a mapping as YAML.
        layers: `all`, or numbers with commas.
        source: the labelled source to probe on; None takes the first labelled one.
        overrides: other fields of ProbeSettings.
        imports: plug-ins to import first.

    Raises:
        UserError: no such run, source or layer, or settings that do not fit.
        DataError: data without labels.
    """
    import_all(imports)
    settings = _settings(heads, layers, overrides)
    trained = load_trained(resolve_run(run))
    labelled = _labelled_source(trained, source)
    assert labelled.validation is not None
    clip = labelled.clip
    if settings.frames is not None:
        clip = clip.model_copy(update={"frames": settings.frames})
    train = LabelledDataset(labelled.train, clip)
    validation = LabelledDataset(labelled.validation, clip)
    say(
        f"probing {trained.found.checkpoint} on {labelled.name}: {len(train):,} training and "
        f"{len(validation):,} validation samples of {len(labelled.train.classes)} classes"
    )
    with progress_bar("probing") as progress:
        results = run_probes(
            trained.model,
            trained.tokenizer,
            train,
            validation,
            settings=settings,
            num_classes=len(labelled.train.classes),
            precision=trained.precision,
            progress=progress,
            say=say,
        )
    folder = trained.found.run / FOLDER
    step = trained.found.meta.step
    results.write(folder, source=labelled.name, step=step)
    title = f"{trained.found.run.name} at step {step:,} on {labelled.name}"
    draw_layer_curve(folder / CURVE, results.rows, title)
    say(results.summary())
    say(f"{folder}: results.jsonl, summary.json, {CURVE}")


def _settings(heads: Sequence[str], layers: str, overrides: Sequence[str]) -> ProbeSettings:
    raw: dict[str, Any] = {"heads": [_head(head) for head in heads]}
    if layers != "all":
        try:
            raw["layers"] = [int(layer) for layer in layers.split(",")]
        except ValueError:
            raise UserError(f"--layers {layers}: write all, or numbers such as 0,3,6") from None
    for override in overrides:
        apply_override(raw, override, "toto probe")
    try:
        return ProbeSettings.model_validate(raw)
    except ValidationError as error:
        raise RecipeError("toto probe", explain(error, ProbeSettings, raw)) from None


def _head(text: str) -> Any:
    try:
        return parse_value(text)
    except yaml.YAMLError as error:
        mend = "Write a name, or {name: mine, size: 8}"
        raise UserError(f"--pool {text}: no YAML. {mend}") from error


def _labelled_source(trained: Trained, wanted: str | None) -> Source:
    recipe = trained.found.recipe
    sources = open_sources(recipe, trained.tokenizer)
    if wanted is not None and wanted not in recipe.data.sources:
        raise UserError(f"--source {wanted}: the run has {', '.join(recipe.data.sources)}")
    for source in sources:
        if wanted not in (None, source.name):
            continue
        if source.validation is not None and source.train.classes:
            if source.train.classes != source.validation.classes:
                raise DataError(
                    f"{source.train.path} and {source.validation.path} have other classes. Pack "
                    "both from folders with the same sub-folders"
                )
            return source
    raise DataError(
        f"{wanted or 'no source of the run'}: no labels with a validation dataset. Pack a folder "
        "with one sub-folder a class, and name it in data.sources"
        + (f" (the run read {Path(recipe.data.root)})" if wanted is None else "")
    )
