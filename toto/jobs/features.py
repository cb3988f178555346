"""`toto features`: what stands at some layers of a model, for data of the user's own, as files."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from toto.backbones.base import resolve_layers
from toto.data.index import Dataset
from toto.data.manifest import MANIFEST_FILE
from toto.data.middles import DatasetMiddles, FileMiddles, Middles, media_files
from toto.data.tokens import require_tokenizer
from toto.errors import DataError, UserError
from toto.evaluation.feature_files import Extraction, write_features
from toto.files import require_writable, sole_writer
from toto.jobs.console import progress_bar, say
from toto.jobs.seen_as import Seen, seen_as
from toto.jobs.trained import FoundRun, Trained, import_all, load_trained, resolve_run
from toto.training.checkpoint import MODEL_FILE, FileRecord
from toto.wording import number_of

if TYPE_CHECKING:
    from pathlib import Path

    from toto.data.config import ClipConfig

__all__ = ["FeaturesRequest", "start_features"]


@dataclass(frozen=True)
class FeaturesRequest:
    """The command's arguments.

    Attributes:
        run: a run or checkpoint.
        data: a packed dataset, or a folder or a file of pictures and videos.
        out: a folder that does not exist yet.
        layers: `all`, or numbers with commas.
        seen: resolution, frames, RoPE base and attention, where they differ from the training.
        stride: every stride-th decoded frame; None: as trained.
        batch: samples in one pass of the model.
        dtype: of the files.
        imports: plug-ins to import first.
    """

    run: str
    data: Path
    out: Path
    layers: str
    seen: Seen
    stride: int | None
    batch: int
    dtype: Literal["fp32", "bf16"]
    imports: tuple[str, ...]


def start_features(request: FeaturesRequest) -> None:
    """Write OUT, one tensor `[T, H, W, D]` per sample and layer, and OUT/index.json.

    Raises:
        UserError: no such run or layer, OUT exists, or there is no room for it.
        DataError: nothing to read at DATA, or a sample that cannot be read.
    """
    import_all(request.imports)
    found = seen_as(resolve_run(request.run), request.seen)
    recipe = found.recipe
    depth = recipe.backbone.num_layers
    try:
        numbers = range(depth + 1) if request.layers == "all" else _numbers(request.layers)
        layers = sorted(set(resolve_layers(list(numbers), depth).values()))
    except ValueError as error:
        raise UserError(f"--layers {request.layers}: {error}. Write all, or 0,3,-1") from error
    with sole_writer(request.out):
        if request.out.exists():
            raise UserError(f"{request.out} exists already. Remove it, or choose another folder")
        require_writable(request.out, "Choose another folder")
        _extract(request, found, layers)


def _extract(request: FeaturesRequest, found: FoundRun, layers: list[int]) -> None:
    """Write the features of some layers to OUT, which is held."""
    recipe = found.recipe
    clip = recipe.clip.model_copy(update={"stride": request.stride or recipe.clip.stride})
    trained = load_trained(found)
    clips, fingerprint = _open(request.data, clip, trained)
    extraction = Extraction(
        clips=clips,
        layers=layers,
        width=recipe.backbone.width,
        grid=recipe.tokenizer.grid(clip.resolution),
        dtype=request.dtype,
        precision=trained.precision,
        batch=request.batch,
        origin=_origin(trained, clip) | {"data": fingerprint},
    )
    _announce(extraction, request.out)
    with progress_bar("features", "samples") as progress:
        write_features(request.out, trained.model, trained.tokenizer, extraction, progress=progress)
    files = len(extraction.shards())
    say(f"{request.out}: index.json and {files} {'file' if files == 1 else 'files'}")


def _numbers(text: str) -> list[int]:
    return [int(layer) for layer in text.split(",")]


def _open(data: Path, clip: ClipConfig, trained: Trained) -> tuple[Middles, str | None]:
    """The samples, and the fingerprint of a packed dataset."""
    if (data / MANIFEST_FILE).is_file():
        dataset = Dataset.open(data)
        if dataset.form == "tokens":
            require_tokenizer(dataset, trained.tokenizer)
            if dataset.tokens.resolution != clip.resolution:
                raise DataError(
                    f"{data} holds tokens of {dataset.tokens.resolution} px, and {clip.resolution} "
                    "px are asked for. Name the packed pictures or videos"
                )
        return DatasetMiddles(dataset, clip), dataset.fingerprint()
    if data.is_file():
        return FileMiddles(data.parent, [data], clip), None
    if not data.is_dir():
        raise DataError(f"nothing at {data}. Name a packed dataset, a folder or a file")
    return FileMiddles(data, media_files(data), clip), None


def _origin(trained: Trained, clip: ClipConfig) -> dict[str, object]:
    found = trained.found
    return {
        "checkpoint": str(found.checkpoint),
        "step": found.meta.step,
        "model": FileRecord.of(found.checkpoint / MODEL_FILE).sha256,
        "tokenizer": found.meta.tokenizer,
        "clip": clip.identity(),
        "backbone": found.recipe.backbone.identity(),
        "mask": found.recipe.mask.identity(),
    }


def _announce(extraction: Extraction, out: Path) -> None:
    """Say what will be written, and refuse what has no room."""
    needed = extraction.most_bytes()
    height, width = extraction.grid
    what = (
        f"features of {number_of(len(extraction.clips), 'sample')} × "
        f"{number_of(len(extraction.layers), 'layer')}, at most "
        f"{extraction.clips.clip.frames} × {height} × {width} × {extraction.width} "
        f"{extraction.dtype} each, take at most {needed / 1e9:.3g} GB"
    )
    place = next(folder for folder in out.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{what}, and {place} has {free / 1e9:.3g} GB free. Choose fewer layers or frames, "
            "--dtype bf16, or another place"
        )
    say(what)
