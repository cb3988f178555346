"""`toto probe`: every layer of a frozen model, on labelled data of its run or of a protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from toto.analysis.evaluations import EVALUATIONS, PROBES
from toto.analysis.figures import draw_layer_curve
from toto.data.class_names import differing_classes
from toto.data.clips import LabelledDataset
from toto.data.views import CentreView, GridViews, RandomViews
from toto.errors import DataError, RecipeError, UserError
from toto.evaluation.classification import run_probes
from toto.evaluation.feature_cache import FeatureStore
from toto.folders import new_folder
from toto.jobs.console import progress_bar, say
from toto.jobs.result_folder import free_folder, named_folder
from toto.jobs.seen_as import Seen, seen_as
from toto.jobs.sources import Source, open_sources, root_explained
from toto.jobs.trained import FoundRun, Trained, import_all, load_trained, resolve_run
from toto.recipe.messages import explain
from toto.recipe.overrides import apply_override
from toto.recipe.reader import read_probe_recipe
from toto.recipe.schemas import ProbeRecipe, TrainRecipe
from toto.recipe.yaml_reader import parse_value
from toto.tasks.probe_settings import FREE_SETTINGS, ProbeSettings
from toto.training.checkpoint import MODEL_FILE, FileRecord
from toto.wording import number_of

if TYPE_CHECKING:
    from toto.evaluation.results import ProbeResults
    from toto.tokenizers.base import Tokenizer

__all__ = ["ProbeRequest", "start_probing"]

DEFAULT = "default"  # the name of what no recipe says
CURVE = "curve.png"
FEATURES = "features"


@dataclass(frozen=True, kw_only=True)
class ProbeRequest:
    """The command's arguments.

    Attributes:
        run: a run or checkpoint; None takes the newest next-token checkpoint under ./runs.
        recipe: a protocol; None takes the defaults, and average and attention pooling.
        heads: pooling heads, each a name or a mapping as YAML, instead of the protocol's.
        layers: `all`, or numbers with commas; None takes the protocol's.
        source: the labelled source to probe on; None takes the first labelled one.
        overrides: other fields of ProbeSettings.
        imports: plug-ins to import first.
        out: the folder of the results, instead of one under RUN/eval.
        overwrite: replace an earlier result.
    """

    run: str | None
    recipe: str | None
    heads: tuple[str, ...]
    layers: str | None
    source: str | None
    overrides: tuple[str, ...]
    imports: tuple[str, ...]
    out: Path | None
    overwrite: bool


def start_probing(request: ProbeRequest) -> None:
    """Probe a run; write results.jsonl, summary.json and curve.png under RUN/eval.

    The folder is named by the protocol, the source and everything else that the figures depend on,
    so that no probing replaces another.

    Raises:
        UserError: no such run, recipe, source or layer, settings that do not fit, or a folder that
            is taken.
        DataError: data without labels.
    """
    import_all(request.imports)
    protocol = _protocol(request)
    settings = protocol.probes
    found = seen_as(resolve_run(request.run), _seen(protocol))
    trained = load_trained(found)
    with root_explained(found.recipe.data.root, found.run):
        labelled, others = _labelled_source(found.recipe, trained.tokenizer, request.source)
    train, validation = _clips(labelled, settings)
    classes = len(labelled.train.classes)
    say(
        f"probing {found.checkpoint} on {labelled.name}: {len(train):,} training and "
        f"{len(validation):,} validation samples of {number_of(classes, 'class', 'classes')}"
    )
    if others and request.source is None:
        say(f"other labelled sources, each by --source NAME: {', '.join(others)}")
    origin = _origin(trained, labelled)
    conditions = origin | _conditions(trained, labelled, settings)
    with free_folder(
        _named_folder(found, protocol, labelled, conditions),
        request.out,
        record="summary.json",
        overwrite=request.overwrite,
        command="toto probe",
    ) as folder:
        if folder is None:
            return
        probing = _Probing(trained, protocol, labelled, origin, conditions)
        results = probing.run(train, validation)
        probing.write(results, folder)
    say(results.summary())
    say(f"{folder}: results.jsonl, summary.json, {CURVE}")


@dataclass(frozen=True)
class _Probing:
    """One probing: what is probed, how, and what its results depend on."""

    trained: Trained
    protocol: ProbeRecipe
    source: Source
    origin: dict[str, object]
    conditions: dict[str, object]

    def run(self, train: LabelledDataset, validation: LabelledDataset) -> ProbeResults:
        """Train and score all probes."""
        found, settings = self.trained.found, self.protocol.probes
        with progress_bar("probing", "samples") as progress:
            return run_probes(
                self.trained.model,
                self.trained.tokenizer,
                train,
                validation,
                settings=settings,
                num_classes=len(self.source.train.classes),
                precision=self.trained.precision,
                context=found.recipe.clip.frames if settings.context == "packed" else 1,
                store=FeatureStore(found.run / EVALUATIONS / FEATURES, self.origin),
                progress=progress,
                say=say,
            )

    def write(self, results: ProbeResults, folder: Path) -> None:
        """Write the results and their figure into a folder that is held."""
        found = self.trained.found
        with new_folder(folder) as unfinished:
            results.write(
                unfinished,
                evaluation=PROBES,
                source=self.source.name,
                step=found.meta.step,
                protocol=self.protocol.model_dump(mode="json"),
                conditions=self.conditions,
            )
            title = f"{found.run.name} at step {found.meta.step:,} on {self.source.name}"
            draw_layer_curve(unfinished / CURVE, results.rows, title)


def _named_folder(
    found: FoundRun, protocol: ProbeRecipe, source: Source, conditions: dict[str, object]
) -> Path:
    """Named by all that decides a figure; a cache and the size of a pass are not part of it."""
    settings = protocol.probes.model_dump(mode="json", exclude=FREE_SETTINGS)
    evaluation = PROBES if protocol.name == DEFAULT else protocol.name
    decisive = {"evaluation": evaluation, "settings": settings, "conditions": conditions}
    return named_folder(found.run, evaluation, source.name, decisive)


def _conditions(trained: Trained, source: Source, settings: ProbeSettings) -> dict[str, object]:
    """What the results depend on besides the protocol and the features of training samples."""
    assert source.validation is not None
    heads = settings.heads if settings.batch_norm else ()
    return {
        "source": source.name,
        "validation": source.validation.fingerprint(),
        "precision": trained.precision,
        "batch_norm_on": {head.label: head.normalises for head in heads},
    }


def _protocol(request: ProbeRequest) -> ProbeRecipe:
    """The recipe's, or the defaults, with what the command line says on top."""
    changes: dict[str, Any] = {}
    if request.heads:
        changes["heads"] = [_head(head) for head in request.heads]
    if request.layers is not None:
        changes["layers"] = _layers(request.layers)
    where = "toto probe"
    protocol = ProbeRecipe(name=DEFAULT)
    if request.recipe is not None:
        protocol, where = read_probe_recipe(request.recipe), request.recipe
    raw = protocol.probes.model_dump(mode="json") | changes
    for override in request.overrides:
        apply_override(raw, override, where)
    try:
        settings = ProbeSettings.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(where, explain(error, ProbeSettings, raw)) from None
    return protocol.model_copy(update={"probes": settings})


def _layers(text: str) -> str | list[int]:
    if text == "all":
        return text
    try:
        return [int(layer) for layer in text.split(",")]
    except ValueError:
        raise UserError(f"--layers {text}: write all, or numbers such as 0,3,6") from None


def _head(text: str) -> Any:
    try:
        return parse_value(text)
    except yaml.YAMLError as error:
        mend = "Write a name, or {name: mine, size: 8}"
        raise UserError(f"--pool {text}: no YAML. {mend}") from error


def _seen(protocol: ProbeRecipe) -> Seen:
    settings = protocol.probes
    return Seen(
        resolution=settings.resolution,
        frames=settings.frames,
        rope_base=settings.rope_base,
        attention=settings.attention,
        data=protocol.data,
        pixels=settings.augmentation != "none" or settings.test_crops > 1,
    )


def _labelled_source(
    recipe: TrainRecipe, tokenizer: Tokenizer, wanted: str | None
) -> tuple[Source, list[str]]:
    """The source to probe on, and the names of the others that have labels.

    Raises:
        UserError: no source of that name.
        DataError: no labels, or a validation dataset that does not fit the training data.
    """
    if wanted is not None and wanted not in recipe.data.sources:
        raise UserError(f"--source {wanted}: there are {', '.join(recipe.data.sources)}")
    labelled = {
        source.name: source
        for source in open_sources(recipe, tokenizer)
        if source.validation is not None and source.train.classes
    }
    name = next(iter(labelled), None) if wanted is None else wanted
    if name not in labelled:
        raise DataError(
            f"{wanted or 'no source of the run'}: no labels with a validation dataset. Pack a "
            "folder with one sub-folder a class, and name it in data.sources"
            + (f" (the run read {Path(recipe.data.root)})" if wanted is None else "")
            + (f". Sources with labels: {', '.join(labelled)}" if labelled else "")
        )
    source = labelled.pop(name)
    assert source.validation is not None
    if source.train.classes != source.validation.classes:
        difference = differing_classes(source.validation.classes, source.train.classes)
        raise DataError(
            f"{source.validation.path} has other classes than {source.train.path}: it "
            f"{difference}. Pack it again with --classes {source.train.path}"
        )
    if source.train.fingerprint() == source.validation.fingerprint():
        raise DataError(
            f"{source.validation.path} holds the very samples of {source.train.path}, and "
            "probes would be scored on what they learned. Name another validation dataset"
        )
    return source, list(labelled)


def _clips(source: Source, settings: ProbeSettings) -> tuple[LabelledDataset, LabelledDataset]:
    """Training and validation samples, as the settings show them.

    Raises:
        DataError: no labels, videos too short, crops of tokens, tokens of another resolution, clips
            or frames of pictures, or videos where pictures are to share sequences.
    """
    assert source.validation is not None
    if settings.context == "packed" and source.train.kind == "videos":
        raise DataError(
            f"context: packed puts pictures into one sequence, and {source.train.path} holds "
            "videos. Write context: single"
        )
    alone = settings.context == "single" and source.train.kind == "images"
    if alone and settings.frames not in (None, 1):
        raise DataError(
            f"frames {settings.frames}: {source.train.path} holds pictures, which are read alone. "
            "Leave it out, or write context: packed"
        )
    if settings.test_clips > 1 and source.validation.kind == "images":
        raise DataError(
            f"test_clips {settings.test_clips}: {source.validation.path} holds pictures, which "
            "have one. Write test_clips: 1; test_crops: 3 shows more of each"
        )
    for dataset in (source.train, source.validation):
        made = dataset.manifest.tokens and dataset.manifest.tokens.resolution
        if made not in (None, source.clip.resolution):
            raise DataError(
                f"{dataset.path} holds tokens of {made} px, and {source.clip.resolution} px are "
                "asked for. Name the packed pictures or videos"
            )
    augments = settings.augmentation != "none"
    shown = RandomViews(settings.data_seed) if augments else CentreView()
    grid = GridViews(settings.test_clips, settings.test_crops)
    return (
        LabelledDataset(source.train, source.clip, shown),
        LabelledDataset(source.validation, source.clip, grid),
    )


def _origin(trained: Trained, source: Source) -> dict[str, object]:
    """All that the features of training samples depend on, but for what the store knows itself."""
    recipe, meta = trained.found.recipe, trained.found.meta
    return {
        "model": FileRecord.of(trained.found.checkpoint / MODEL_FILE).sha256,
        "tokenizer": meta.tokenizer,
        "data": source.train.fingerprint(),
        "clip": source.clip.identity(),
        "backbone": recipe.backbone.identity(),
        "mask": recipe.mask.identity(),
        "device": trained.device.type,
    }
