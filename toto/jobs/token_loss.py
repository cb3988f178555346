"""`toto analyze token-loss`: the loss at each position of a sequence (Figure 10)."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from toto.analysis.figures import draw_token_loss
from toto.analysis.token_loss import PositionLosses, baseline_positions, mean_by_position
from toto.data.loader import evaluation_batches
from toto.data.stream import SourceStream
from toto.data.tokens import require_tokenizer
from toto.errors import RunError
from toto.files import write_atomic
from toto.folders import new_folder
from toto.jobs.console import progress_bar, say, say_table
from toto.jobs.result_folder import free_folder, named_folder
from toto.jobs.sources import open_dataset
from toto.jobs.trained import (
    build_target_tokenizer,
    import_all,
    load_trained,
    require_next_tokens,
    resolve_run,
)
from toto.tasks.next_token import NextTokenTask
from toto.training.checkpoint import MODEL_FILE, FileRecord
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from toto.data.index import Dataset
    from toto.jobs.trained import Trained

__all__ = ["analyze_token_loss"]

EVALUATION = "token_loss"
RECORD, TABLE, FIGURE = "token_loss.json", "token_loss.csv", "token_loss.png"
"""The names that the folder holds."""
BATCH = 8


@dataclass(frozen=True)
class _Measured:
    """The model's losses and those of what it must beat; patches have nothing to count."""

    model: PositionLosses
    baselines: dict[str, PositionLosses]
    copy_probability: float | None

    def columns(self) -> dict[str, PositionLosses]:
        return {"model": self.model} | self.baselines


def analyze_token_loss(
    run: str,
    data: str,
    *,
    out: Path | None,
    sequences: int | None,
    overwrite: bool,
    imports: Sequence[str],
) -> None:
    """Measure the loss at every position, and write it to a folder under RUN/eval.

    Args:
        run: a next-token run or checkpoint.
        data: a dataset, raw or of the run's tokens.
        out: the folder of token_loss.json, token_loss.csv and token_loss.png instead.
        sequences: how many, spread over the dataset; None for all.
        overwrite: replace an earlier result.
        imports: plug-ins to import first.

    Raises:
        UserError: no such run, one that learned classes, or a folder that is taken.
        DataError: data that are missing, too short, broken, or tokens of another tokenizer.
        RunError: a loss that is not finite, or the disk is full or refuses.
    """
    import_all(imports)
    found = resolve_run(run)
    require_next_tokens(found)
    trained = load_trained(found)
    dataset = open_dataset(data)
    if dataset.form == "tokens":
        require_tokenizer(dataset, trained.tokenizer)
    with free_folder(
        _named_folder(trained, dataset, sequences),
        out,
        record=RECORD,
        overwrite=overwrite,
        command="toto analyze token-loss",
    ) as folder:
        if folder is not None:
            _measure_into(folder, trained, dataset, sequences)


def _measure_into(folder: Path, trained: Trained, dataset: Dataset, sequences: int | None) -> None:
    measured = _measure(trained, dataset, sequences)
    unit = trained.found.recipe.loss_unit
    with new_folder(folder) as unfinished:
        draw_token_loss(unfinished / FIGURE, measured.columns(), unit)
        write_atomic(unfinished / TABLE, _table(measured))
        record = _record(trained, dataset, measured)
        write_atomic(unfinished / RECORD, json.dumps(record, indent=2) + "\n")
    _say_frames(measured, unit)
    say(f"{folder}: {RECORD}, {TABLE}, {FIGURE}")


def _named_folder(trained: Trained, dataset: Dataset, sequences: int | None) -> Path:
    decisive = {
        "evaluation": EVALUATION,
        "model": FileRecord.of(trained.found.checkpoint / MODEL_FILE).sha256,
        "data": dataset.fingerprint(),
        "sequences": sequences,
        "precision": trained.precision,
        "device": trained.device.type,
    }
    subject = dataset.path.rstrip("/").rpartition("/")[2]
    return named_folder(trained.found.run, EVALUATION, subject, decisive)


def _measure(trained: Trained, dataset: Dataset, sequences: int | None) -> _Measured:
    target = trained.found.recipe.target
    codes: list[Tensor] = []
    model = mean_by_position(_losses(trained, dataset, sequences, codes))
    if target.output == "patches":
        return _Measured(model, {}, None)
    fitted, baselines = baseline_positions(codes, target.codebook_size)
    return _Measured(model, baselines, fitted.copy_probability)


@torch.inference_mode()
def _losses(
    trained: Trained, dataset: Dataset, sequences: int | None, codes: list[Tensor]
) -> Iterator[Tensor]:
    """`losses_BTHW` of the model, NaN in a prefix that it is given; appends targets to `codes`."""
    found = trained.found
    targets = build_target_tokenizer(found) if found.recipe.target_tokenizer else None
    task = NextTokenTask(trained.model, trained.tokenizer, targets).to(trained.device).eval()
    available = SourceStream.in_order(dataset, found.recipe.clip).sequences_per_epoch
    total = available if sequences is None else min(sequences, available)
    batches = evaluation_batches(dataset, found.recipe.clip, micro_batch=BATCH, count=sequences)
    done = 0
    with progress_bar("measuring", "sequences") as progress:
        for batch in batches:
            batch = batch.to(trained.device)
            frames, wanted = task.tokens(batch)
            with trained.autocast():
                losses_BL = trained.model.losses(frames, batch.is_image_B, wanted)
            visual = frames.shape[1:4]
            losses_BL = losses_BL[:, : visual.numel()]
            if not bool(losses_BL.isfinite().all()):
                raise RunError(
                    f"the loss of {found.checkpoint} is not finite. Name an earlier checkpoint"
                )
            losses_BL[:, : trained.model.mask.num_given] = math.nan
            if found.recipe.target.output == "codes":
                codes.append(wanted.to("cpu", torch.int32))
            yield losses_BL.reshape(len(batch), *visual)
            done += len(batch)
            progress(done, total)


def _record(trained: Trained, dataset: Dataset, measured: _Measured) -> dict[str, Any]:
    """What token_loss.json holds; null where a prefix was given, not predicted."""
    found = trained.found
    return {
        "checkpoint": str(found.checkpoint),
        "step": found.meta.step,
        "data": dataset.path,
        "fingerprint": dataset.fingerprint(),
        "sequences": measured.model.sequences,
        "unit": found.recipe.loss_unit,
        "grid": list(measured.model.mean_THW.shape),
        "baselines": "fitted on these very sequences, which favours them",
        "copy_probability": measured.copy_probability,
        "by_frame": {name: _known(one.by_frame()) for name, one in measured.columns().items()},
        "first_token_of_frame": {
            name: _known(one.first_of_frames()) for name, one in measured.columns().items()
        },
        "mean": float(measured.model.mean_THW.nanmean()),
    }


def _known(values: list[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]


def _table(measured: _Measured) -> str:
    """Every position: its frame, row and column from 0, the losses, the margin of the model's."""
    columns = measured.columns()
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["position", "frame", "row", "column", *columns, "model_margin"])
    _, height, width = measured.model.mean_THW.shape
    values = [one.mean_THW.flatten().tolist() for one in columns.values()]
    values.append(measured.model.margin_THW.flatten().tolist())
    for position, row in enumerate(zip(*values, strict=True)):
        frame, place = divmod(position, height * width)
        writer.writerow([position, frame, *divmod(place, width), *map(_cell, row)])
    return file.getvalue()


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def _say_frames(measured: _Measured, unit: str) -> None:
    columns = measured.columns()
    firsts = measured.model.first_of_frames()
    frames = zip(*(one.by_frame() for one in columns.values()), firsts, strict=True)
    rows = [
        [str(frame), *(f"{value:.3f}" for value in values)]
        for frame, values in enumerate(frames, start=1)
    ]
    say(f"{unit}, mean of {number_of(measured.model.sequences, 'sequence')}:")
    say_table(["frame", *columns, "its first token"], rows)
    if measured.baselines:
        say(
            f"{' and '.join(measured.baselines)}: fitted on these very sequences, "
            "which favours them"
        )
