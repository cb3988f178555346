"""`toto report`: what a run wrote, as one HTML page."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from toto.analysis.report import DataSource, Reconstructions, ReportContent, write_report
from toto.analysis.runs import read_run
from toto.data.clips import read_clip
from toto.jobs.console import say
from toto.jobs.realised import FailureLog, realised_mixture
from toto.jobs.setup import RECIPE_FILE, RUN_FILE
from toto.jobs.sources import named_stream, open_dataset
from toto.jobs.trained import FoundRun, build_target_tokenizer, import_all, resolve_run
from toto.recipe.derived import derived_numbers
from toto.recipe.yaml_reader import dump_yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["start_report"]

PICTURES_PER_SOURCE = 4
LOSS_UNITS = {"codes": "nats/token", "patches": "squared error"}
NOTHING_LOST = "patches are the pixels themselves, each patch less its mean and over its deviation"


def start_report(run: str | None, *, imports: Sequence[str]) -> None:
    """Write RUN/report.html.

    Raises:
        UserError: no such run.
        DataError: a record of the run that cannot be read.
    """
    import_all(imports)
    found = resolve_run(run)
    record = read_run(found.run)
    started = _started(found)
    recipe = found.recipe
    numbers = derived_numbers(recipe)
    content = ReportContent(
        name=recipe.name,
        record=record,
        command=started["command"],
        recipe=dump_yaml(recipe.model_dump(mode="json")),
        sources=_data_sources(found),
        reconstructions=_reconstructions(found),
        loss_unit=LOSS_UNITS[recipe.target.output],
        samples_video=recipe.tokenizer.output == "codes",
        facts={
            "parameters": f"{numbers['params_total'] / 1e6:.2f} M",
            "sequence": f"{recipe.layout.frames} × {recipe.layout.height} × {recipe.layout.width} "
            f"= {recipe.layout.num_visual:,} tokens",
            "trained": f"{found.meta.step:,} steps, {found.meta.tokens:,} tokens",
            "training time": f"{found.meta.seconds:.0f} s",
        },
        versions={
            name: str(value)
            for name, value in started["versions"].items()
            if name in ("toto", "torch", "python")
        },
        machine={
            name: str(value)
            for name, value in started["versions"].items()
            if name in ("platform", "cpu", "gpu", "threads") and value
        }
        | {
            "precision": recipe.training.precision,
            "blocks": "compiled" if recipe.training.compile else "eager",
        },
    )
    out = found.run / "report.html"
    write_report(out, content)
    say(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


def _started(found: FoundRun) -> dict[str, Any]:
    """What the run wrote down when it began; its checkpoint knows the versions too."""
    path = found.run / RUN_FILE
    if not path.is_file():
        return {"command": f"toto train {RECIPE_FILE}", "versions": found.meta.versions}
    started: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return started


def _data_sources(found: FoundRun) -> list[DataSource]:
    """What each source holds, and what the run has drawn of it until its checkpoint."""
    recipe = found.recipe
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
    clip = recipe.clip.model_copy(update={"frames": 1, "resolution": recipe.target_resolution})
    originals: list[npt.NDArray[np.uint8]] = []
    for source in recipe.data.sources.values():
        if source.validation is None:
            continue
        dataset = open_dataset(source.validation, root=recipe.data.root, cache=recipe.data.cache)
        if dataset.form == "tokens":
            continue
        kept = dataset.kept().tolist()
        count = min(PICTURES_PER_SOURCE, len(kept))
        for index in range(count):
            sample = kept[index * len(kept) // count]
            frame = read_clip(dataset, sample, dataset.frames(sample) // 2, clip)[0]
            originals.append(frame.astype(np.uint8))
    if not originals:
        return "no source has held-out pictures"
    originals_NHWC = np.stack(originals)
    tokenizer = build_target_tokenizer(found).eval()
    pixels_BCHW = torch.from_numpy(originals_NHWC).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        decoded_BCHW = tokenizer.decode(tokenizer.encode(pixels_BCHW))
    decoded = (decoded_BCHW.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return Reconstructions(originals_NHWC, decoded)
