"""`toto report`: what a run wrote, as one HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from toto.analysis.findings import read_findings
from toto.analysis.report import DataSource, Reconstructions
from toto.analysis.runs import read_run
from toto.analysis.tokenizer_report import TokenizerReport, write_tokenizer_report
from toto.analysis.tokenizer_runs import read_tokenizer_run
from toto.analysis.training_report import TrainingReport, write_training_report
from toto.data.clips import FrameList, read_clip
from toto.data.config import ClipConfig
from toto.jobs.console import say
from toto.jobs.history import first_start, last_start
from toto.jobs.realised import FailureLog, realised_mixture
from toto.jobs.setup import RECIPE_FILE
from toto.jobs.sources import named_stream, open_dataset, root_explained
from toto.jobs.trained import (
    FoundRun,
    build_target_tokenizer,
    import_all,
    load_trained_tokenizer,
    resolve_any_run,
)
from toto.recipe.derived import derived_numbers
from toto.recipe.yaml_reader import dump_yaml
from toto.tasks.config import ClassifyConfig, TokenizerTaskConfig
from toto.training.checkpoint import verify_weights
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from toto.data.index import Dataset
    from toto.jobs.trained import FoundCheckpoint, FoundTokenizerRun
    from toto.recipe.schemas import Recipe, TrainRecipe
    from toto.tokenizers.base import Tokenizer

__all__ = ["COMMANDS", "start_report"]

PICTURES_PER_SOURCE = 4
TOKENIZER_PICTURES_PER_SOURCE = 8
COMMANDS = {"train": "toto train", "tokenizer": "toto tokenizer train"}
VERSIONS = ("toto", "torch", "deepspeed", "python")
MACHINE = ("platform", "cpu", "gpu", "threads", "ranks")
Pictures = npt.NDArray[np.uint8]
NOTHING_LOST = "patches are the pixels themselves, normalised"


def start_report(run: str | None, *, out: Path | None, imports: Sequence[str]) -> None:
    """Write the page of a next-token run or of a tokenizer's.

    Args:
        run: its directory or checkpoint; the newest unless given.
        out: the page; RUN/report.html unless given.
        imports: plug-ins to import first.

    Raises:
        UserError: no such run.
        CheckpointError: the weights are not those that were written.
        DataError: a record of the run that cannot be read.
    """
    import_all(imports)
    found = resolve_any_run(run)
    page = out or found.run / "report.html"
    if isinstance(found, FoundRun):
        # The page says what this model reached, though it needs none of its weights.
        verify_weights(found.checkpoint)
        _report_training(found, page)
    else:
        _report_tokenizer(found, page)
    say(f"{page}: {page.stat().st_size / 1e6:.1f} MB")


def _report_training(found: FoundRun, out: Path) -> None:
    recipe = found.recipe
    record = read_run(found.run)
    started = _started(found)
    parameters = derived_numbers(recipe)["params_total"]
    content = TrainingReport(
        name=recipe.name,
        record=record,
        findings=read_findings(found.run),
        command=started["command"],
        recipe=_recipe_text(recipe),
        sources=_data_sources(found),
        reconstructions=_reconstructions(found),
        loss_unit=recipe.loss_unit,
        no_generation=_no_generation(recipe),
        facts={
            "parameters": f"{parameters / 1e6:.2f} M",
            "sequence": f"{recipe.layout.frames} × {recipe.layout.height} × {recipe.layout.width} "
            f"= {recipe.layout.num_visual:,} tokens",
            "trained": f"{number_of(found.meta.step, 'step')}, "
            f"{number_of(found.meta.tokens, 'token')}",
            "training time": f"{found.meta.seconds:.0f} s",
        },
        versions=_versions(started),
        machine=_machine(started)
        | _peak_line(found)
        | {
            "precision": recipe.training.precision,
            "blocks": "compiled" if recipe.training.compile else "eager",
        },
    )
    write_training_report(out, content)


def _no_generation(recipe: TrainRecipe) -> str | None:
    """Return why a model of this recipe generates nothing; None where it can."""
    if isinstance(recipe.task, ClassifyConfig):
        return "this model learned classes, and no longer predicts tokens"
    if recipe.tokenizer.output == "patches":
        return "a prediction from patches is a mean, or a code that the model does not take in"
    if recipe.context_frames == 1:
        return (
            "this model was trained on sequences of one frame, which hold no prompt; "
            "toto generate --prompt-frames 0 --frames 1 generates single frames"
        )
    return None


def _report_tokenizer(found: FoundTokenizerRun, out: Path) -> None:
    recipe = found.recipe
    assert isinstance(recipe.task, TokenizerTaskConfig)
    record = read_tokenizer_run(found.run)
    started = _started(found)
    tokenizer = load_trained_tokenizer(found)
    parameters = sum(parameter.numel() for parameter in tokenizer.parameters())
    height, width = recipe.tokenizer.grid(recipe.clip.resolution)
    pictures = found.meta.step * recipe.batch_sequences * recipe.clip.frames
    content = TokenizerReport(
        name=recipe.name,
        record=record,
        command=started["command"],
        recipe=_recipe_text(recipe),
        sources=_data_sources(found),
        num_codes=recipe.tokenizer.codebook_size,
        checkpoint_step=found.meta.step,
        reconstructions=_reconstructions_by_source(recipe, tokenizer),
        terms=recipe.task.terms,
        facts={
            "tokenizer": recipe.tokenizer.registered_name,
            "parameters": f"{parameters / 1e6:.2f} M",
            "codes": f"{recipe.tokenizer.codebook_size:,}",
            "a picture": f"{recipe.clip.resolution} px → {height} × {width} tokens",
            "trained": f"{number_of(found.meta.step, 'step')}, {number_of(pictures, 'picture')}",
            "training time": f"{found.meta.seconds:.0f} s",
        },
        versions=_versions(started),
        machine=_machine(started) | {"precision": str(recipe.training.precision)},
    )
    write_tokenizer_report(out, content)


def _started(found: FoundCheckpoint) -> dict[str, Any]:
    """What began the run, and the versions of its last start; its checkpoint knows them too."""
    start = last_start(found.run)
    if start is None:
        return {
            "command": f"{COMMANDS[found.recipe.verb]} {RECIPE_FILE}",
            "versions": found.meta.versions,
        }
    begun = first_start(found.run) or start
    return {"command": begun.command, "versions": start.versions}


def _peak_line(found: FoundCheckpoint) -> dict[str, str]:
    start = last_start(found.run)
    if start is None or start.peak is None:
        return {}
    return {"peak": f"{start.peak['flops']:.3g} FLOP/s, {start.peak['origin']}"}


def _recipe_text(recipe: Recipe) -> str:
    return dump_yaml(recipe.model_dump(mode="json"))


def _versions(started: dict[str, Any]) -> dict[str, str]:
    versions = started["versions"]
    return {name: str(versions[name]) for name in versions if name in VERSIONS}


def _machine(started: dict[str, Any]) -> dict[str, str]:
    versions = started["versions"]
    return {name: str(versions[name]) for name in versions if name in MACHINE and versions[name]}


def _data_sources(found: FoundCheckpoint) -> list[DataSource]:
    """What each source holds, and what the run has drawn of it until its checkpoint."""
    recipe = found.recipe
    with root_explained(recipe.data.root, found.run):
        stream = named_stream(recipe)
    sequences = found.meta.step * recipe.batch_sequences
    drawn = realised_mixture(stream, sequences, FailureLog.read(found.run))
    rows = []
    for draws, trained in zip(drawn, stream.sources, strict=True):
        source = recipe.data.sources[draws.name]
        held_out = 0
        if source.validation is not None:
            held_out = open_dataset(
                source.validation, root=recipe.data.root, cache=recipe.data.cache
            ).num_samples
        rows.append(
            DataSource(
                name=draws.name,
                path=trained.dataset.path,
                samples=trained.dataset.num_samples,
                validation_samples=held_out,
                share=draws.share,
                tokens=draws.sequences * recipe.layout.num_visual,
                epochs=draws.epochs,
                failures=draws.failures,
            )
        )
    return rows


def _reconstructions(found: FoundRun) -> Reconstructions | str:
    """Held-out frames of each source that is stored as pictures, and what their codes hold.

    Of patch inputs that predict codes these are the targets' codes, at the targets' resolution.

    Returns:
        The pictures, or why there are none.
    """
    recipe = found.recipe
    if recipe.target.output == "patches":
        return NOTHING_LOST
    originals: list[Pictures] = []
    for dataset in _held_out(recipe).values():
        kept = dataset.kept().tolist()
        count = min(PICTURES_PER_SOURCE, len(kept))
        samples = [kept[index * len(kept) // count] for index in range(count)]
        places = [(sample, dataset.frames(sample) // 2) for sample in samples]
        originals += _read(dataset, places, recipe.target_resolution)
    if not originals:
        return "no source has held-out pictures"
    return _reconstructed(build_target_tokenizer(found).eval(), np.stack(originals))


def _reconstructions_by_source(recipe: Recipe, tokenizer: Tokenizer) -> dict[str, Reconstructions]:
    """Held-out frames of each source that is stored as pictures, spread evenly over all of it."""
    reconstructions = {}
    for source, dataset in _held_out(recipe).items():
        places = list(FrameList(dataset).spread(TOKENIZER_PICTURES_PER_SOURCE))
        originals_NHWC = np.stack(_read(dataset, places, recipe.clip.resolution))
        reconstructions[source] = _reconstructed(tokenizer, originals_NHWC)
    return reconstructions


def _held_out(recipe: Recipe) -> dict[str, Dataset]:
    """The held-out part of each source that has one and is stored as pictures."""
    datasets = {
        name: open_dataset(source.validation, root=recipe.data.root, cache=recipe.data.cache)
        for name, source in recipe.data.sources.items()
        if source.validation is not None
    }
    return {name: dataset for name, dataset in datasets.items() if dataset.form != "tokens"}


def _read(dataset: Dataset, places: Sequence[tuple[int, int]], resolution: int) -> list[Pictures]:
    """These (sample, frame), in their centre square: `HWC` each."""
    clip = ClipConfig(frames=1, stride=1, resolution=resolution)
    frames = [read_clip(dataset, sample, frame, clip)[0] for sample, frame in places]
    return [frame_HWC.astype(np.uint8, copy=False) for frame_HWC in frames]


def _reconstructed(tokenizer: Tokenizer, originals_NHWC: Pictures) -> Reconstructions:
    pixels_BCHW = torch.from_numpy(originals_NHWC).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        decoded_BCHW = tokenizer.decode(tokenizer.encode(pixels_BCHW))
    decoded = (decoded_BCHW.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return Reconstructions(originals_NHWC, decoded)
