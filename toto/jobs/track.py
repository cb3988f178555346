"""`toto track`: the first masks of DAVIS follow a frozen model's features, layer by layer."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from toto.backbones.base import resolve_layers
from toto.data.davis import open_davis, require_equal_sizes, write_mask
from toto.errors import UserError
from toto.evaluation.propagation import PRESETS, Preset
from toto.evaluation.tracking import FrameFeatures, score_copies, track
from toto.evaluation.tracking_metrics import SequenceScorer, TrackingScores, scored_frames
from toto.evaluation.tracking_results import COPY, HEAD, TrackingResults, cells
from toto.files import disk_errors
from toto.folders import results_in
from toto.jobs.console import progress_bar, say, say_table
from toto.jobs.result_folder import free_folder, named_folder
from toto.jobs.track_folder import OVERLAYS, SUMMARY, SequenceScores, TrackFolder
from toto.jobs.track_overlay import write_overlay
from toto.jobs.trained import FoundRun, Trained, import_all, load_trained, resolve_run
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from toto.data.davis import DavisSequence

__all__ = ["TrackRequest", "start_tracking"]

EVALUATION = "track"


@dataclass(frozen=True)
class TrackRequest:
    """The command's arguments; `out` None is a folder under RUN/eval."""

    run: str
    davis: Path
    sequences: tuple[str, ...]
    layers: str
    resolution: int
    rope_base: float | None
    preset: Literal["crw", "dino"]
    start: Literal["image", "video"]
    out: Path | None
    overwrite: bool
    imports: tuple[str, ...]


def start_tracking(request: TrackRequest) -> None:
    """Track, score, and write the folder, which is whole or as it was before.

    Raises:
        UserError: no such run, layer or sequence, a resolution that the tokenizer cannot take, or
            a folder that holds other files.
        DataError: DAVIS is not as it should be.
        RunError: features that are not finite, or a full disk.
    """
    import_all(request.imports)
    found = _changed(resolve_run(request.run), request)
    layers = _layers(request.layers, found)
    sequences = open_davis(request.davis, request.sequences)
    for sequence in sequences:
        scored_frames(sequence.name, len(sequence))
    require_equal_sizes(sequences)
    trained = load_trained(found)
    features = FrameFeatures(
        trained.model, trained.tokenizer, layers, request.resolution, request.start,
        trained.precision,
    )  # fmt: skip
    settings = _settings(trained, sequences, features, request.preset)
    decisive = {key: value for key, value in settings.items() if key != "checkpoint"}
    subject = f"{request.davis.resolve().name}-{request.preset}-{request.resolution}"
    with free_folder(
        named_folder(found.run, EVALUATION, subject, decisive),
        request.out,
        record=SUMMARY,
        overwrite=request.overwrite,
        command="toto track",
    ) as folder:
        if folder is None:
            return
        _say_plan(found, sequences, layers)
        with disk_errors(folder):
            growing = TrackFolder(folder, settings)
            results = _track_all(sequences, features, PRESETS[request.preset], growing)
            _write_overlays(sequences, growing, results.best)
            growing.complete(results)
    say_table(
        ("layer", *HEAD),
        [
            *([str(layer), *cells(scores)] for layer, scores in results.layers.items()),
            [COPY, *cells(results.copies)],
        ],
    )
    say(results.summary())
    say(f"{folder}: {', '.join(results_in(folder))}")


def _changed(found: FoundRun, request: TrackRequest) -> FoundRun:
    """The run as it reads single frames of the asked resolution, with the asked RoPE base."""
    recipe = found.recipe
    try:
        recipe.tokenizer.grid(request.resolution)
    except ValueError as error:
        raise UserError(f"--resolution {request.resolution}: {error}") from error
    backbone = recipe.backbone
    if request.rope_base is not None:
        if "rope_base" not in type(backbone).model_fields:
            raise UserError(f"--rope-base: backbone {backbone.registered_name} has no RoPE")
        backbone = backbone.model_copy(update={"rope_base": request.rope_base})
    clip = recipe.clip.model_copy(update={"frames": 1, "resolution": request.resolution})
    return replace(found, recipe=recipe.model_copy(update={"clip": clip, "backbone": backbone}))


def _layers(text: str, found: FoundRun) -> list[int]:
    depth = found.recipe.backbone.num_layers
    if text == "all":
        return list(range(depth + 1))
    try:
        numbers = [int(layer) for layer in text.split(",")]
    except ValueError:
        raise UserError(f"--layers {text}: write all, or numbers such as 0,3,6") from None
    try:
        return sorted(set(resolve_layers(numbers, depth).values()))
    except ValueError as error:
        raise UserError(f"--layers {text}: {error}") from error


def _say_plan(found: FoundRun, sequences: Sequence[DavisSequence], layers: list[int]) -> None:
    layout = found.recipe.layout
    say(
        f"tracking with {found.checkpoint}: {number_of(sum(map(len, sequences)), 'frame')}, "
        "sequences "
        f"{len(sequences)}, layers {len(layers)}, {found.recipe.clip.resolution} px, "
        f"{layout.height} × {layout.width} tokens a frame"
    )


def _track_all(
    sequences: Sequence[DavisSequence], features: FrameFeatures, preset: Preset, folder: TrackFolder
) -> TrackingResults:
    """Write the masks of every layer and score them, but for sequences that are done."""
    found = {sequence.name: folder.scores(sequence.name) for sequence in sequences}
    waiting = [sequence for sequence in sequences if found[sequence.name] is None]
    if len(waiting) < len(sequences):
        say(f"going on: {len(sequences) - len(waiting)} of {len(sequences)} sequences are done")
    with progress_bar("tracking", "frames") as progress:
        count = itertools.count(1)
        total = sum(map(len, waiting))
        for sequence in waiting:
            found[sequence.name] = _track_one(
                sequence, features, preset, folder, lambda: progress(next(count), total)
            )
    done = [scores for scores in found.values() if scores is not None]
    layers = {
        layer: TrackingScores(tuple(one for scores in done for one in scores.layers[layer]))
        for layer in features.layers
    }
    copies = TrackingScores(tuple(one for scores in done for one in scores.copies))
    return TrackingResults(layers, copies)


def _track_one(
    sequence: DavisSequence,
    features: FrameFeatures,
    preset: Preset,
    folder: TrackFolder,
    advance: Callable[[], object],
) -> SequenceScores:
    """Write the masks of one sequence, the annotation first, and score all but first and last."""
    objects = sequence.num_objects()
    scorers = {layer: SequenceScorer(sequence.name, objects) for layer in features.layers}
    scored = scored_frames(sequence.name, len(sequence))
    given = dict.fromkeys(features.layers, sequence.truth(0))
    frames = itertools.chain([given], track(sequence, features, preset))
    for index, masks in enumerate(frames):
        truth_HW = sequence.truth(index)
        for layer, found_HW in masks.items():
            path = folder.masks(layer) / sequence.name / sequence.mask_name(index)
            write_mask(path, found_HW)
            if index in scored:
                scorers[layer].add(truth_HW, found_HW, str(path))
        advance()
    of_layers = {layer: scorer.scores() for layer, scorer in scorers.items()}
    scores = SequenceScores(of_layers, score_copies(sequence))
    folder.finish(sequence.name, scores)
    return scores


def _write_overlays(sequences: Sequence[DavisSequence], folder: TrackFolder, best: int) -> None:
    """A film of each sequence under the masks of the best layer."""
    with progress_bar("overlays", "sequences") as progress:
        for done, sequence in enumerate(sequences, start=1):
            path = folder.unfinished / OVERLAYS / f"{sequence.name}.mp4"
            write_overlay(path, sequence, folder.masks(best) / sequence.name, f"layer {best}")
            progress(done, len(sequences))


def _settings(
    trained: Trained, sequences: Sequence[DavisSequence], features: FrameFeatures, preset: str
) -> dict[str, Any]:
    """All that the masks depend on, as JSON."""
    found = trained.found
    layout = found.recipe.layout
    return {
        "evaluation": EVALUATION,
        "checkpoint": str(found.checkpoint),
        "step": found.meta.step,
        "checkpoint_digest": hashlib.sha256(found.meta.identity_json()).hexdigest(),
        "frames": {sequence.name: len(sequence) for sequence in sequences},
        "contents": {sequence.name: sequence.content_digest() for sequence in sequences},
        "folder": str(sequences[0].frames[0].parent.parent),
        "resolution": features.resolution,
        "grid": [layout.height, layout.width],
        "rope_base": getattr(found.recipe.backbone, "rope_base", None),
        "start": features.start,
        "precision": features.precision,
        "device": features.device.type,
        "tracked_layers": list(features.layers),
        "preset": {"name": preset, **asdict(PRESETS[preset])},
    }
