"""`toto tokenizer eval`: tokenizers on the same held-out pictures, in numbers and side by side."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from toto.data.clips import FrameList, read_clip
from toto.data.config import ClipConfig
from toto.errors import DataError, UserError
from toto.evaluation.reconstruction import DEFINITIONS, measure, reconstruct
from toto.evaluation.tokenizer_baselines import CELL_MEAN, baselines_of, images_to_fit
from toto.files import write_atomic
from toto.folders import held_folder, is_whole, new_folder
from toto.generation.media import pixel_scale, sheet, write_png
from toto.jobs.console import progress_bar, say, say_table
from toto.jobs.labels import distinct_labels
from toto.jobs.named_tokenizer import find_tokenizer
from toto.jobs.sources import open_dataset
from toto.jobs.trained import import_all
from toto.tokenizers.quality import SSIM_WINDOW
from toto.training.machine import versions
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from toto.data.index import Dataset
    from toto.evaluation.reconstruction import ReconstructionQuality
    from toto.tokenizers.base import Tokenizer

__all__ = ["evaluate_tokenizers"]

BATCH = 16
SHOWN = 8
NO_VALUE = "–"
HEAD = ("tokenizer", "px", "grid", "PSNR dB", "of mean error", "SSIM", "codes used", "perplexity")

Pictures = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Candidate:
    """One of the tokenizers that are compared, or of their baselines, built."""

    label: str
    tokenizer: Tokenizer
    resolution: int

    @property
    def place(self) -> tuple[int, tuple[int, int]]:
        """Resolution and grid: what is compared with the same baselines."""
        return self.resolution, self.tokenizer.config.grid(self.resolution)


def evaluate_tokenizers(
    path: str,
    out: Path,
    texts: Sequence[str],
    *,
    resolution: int | None,
    samples: int,
    labels: Sequence[str],
    imports: Sequence[str],
) -> None:
    """Measure every tokenizer on the same pictures, and write OUT.

    The pictures are frames in the middles of `samples` equal parts of the dataset, in their centre
    square at each tokenizer's own resolution. Memory holds the tokenizers and one batch.

    Args:
        path: of raw shards, or their address.
        out: the folder of evaluation.json, with every number, and of reconstructions.png.
        texts: the tokenizers, as `find_tokenizer` takes them.
        resolution: side of the pictures, for all of them; None for each its own.
        samples: how many pictures; all, where the dataset has fewer.
        labels: of the tokenizers; none for their names.
        imports: plug-ins to import first.

    Raises:
        UserError: a tokenizer that is not there, does not suit the resolution or has none; or OUT
            exists.
        DataError: token shards, or a sample that cannot be decoded.
    """
    import_all(imports)
    with held_folder(out, "toto tokenizer eval") as folder:
        if is_whole(folder):
            raise UserError(f"{out} exists already. Remove it, or name another folder")
        _evaluate(path, folder, texts, resolution=resolution, samples=samples, labels=labels)
    say(f"{out}: evaluation.json, reconstructions.png")


def _evaluate(
    path: str,
    out: Path,
    texts: Sequence[str],
    *,
    resolution: int | None,
    samples: int,
    labels: Sequence[str],
) -> None:
    """Measure the tokenizers and write `out`, a folder that is held."""
    dataset = open_dataset(path)
    if dataset.form == "tokens":
        raise DataError(
            f"{dataset.path} holds tokens, and originals are needed to compare with. Name the "
            "packed pictures or videos that they were made of"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    candidates = _build(texts, resolution, labels, device)
    frames = FrameList(dataset)
    baselines, fitted_on = _baselines(candidates, dataset, frames, samples, device)
    everything = _measure_all([*candidates, *baselines], dataset, frames, samples, device)
    qualities, measured = everything[: len(candidates)], everything[len(candidates) :]
    shown = list(frames.spread(SHOWN))
    picture_HWC = _side_by_side(candidates, dataset, shown, device)
    record = _record(candidates, qualities, dataset, len(frames), shown)
    record["baselines"] = [
        {"name": one.label, "resolution": one.resolution, "grid": one.place[1], **asdict(quality)}
        for one, quality in zip(baselines, measured, strict=True)
    ]
    record["k_means_fitted_on"] = fitted_on
    with new_folder(out) as unfinished:
        write_png(unfinished / "reconstructions.png", picture_HWC)
        write_atomic(unfinished / "evaluation.json", json.dumps(record, indent=2) + "\n")
    _say_results([*candidates, *baselines], everything)
    say(f"k-means is fitted on {fitted_on}")
    _warn_of_worse_than_means(candidates, qualities, baselines, measured)


def _build(
    texts: Sequence[str], resolution: int | None, labels: Sequence[str], device: torch.device
) -> list[_Candidate]:
    """All of them before the first is measured, so that a mistake costs no time."""
    named = [find_tokenizer(text) for text in texts]
    candidates = []
    for text, found, label in zip(
        texts, named, distinct_labels([found.name for found in named], labels), strict=True
    ):
        side = resolution or found.resolution
        if side is None:
            raise UserError(
                f"--tokenizer {text}: weights do not say at which resolution they are to be used. "
                "Give --resolution, or name a recipe"
            )
        try:
            found.config.grid(side)
        except ValueError as error:
            raise UserError(f"--tokenizer {text}: {error}. Give another --resolution") from error
        if side < SSIM_WINDOW:
            raise UserError(
                f"--tokenizer {text}: pictures of {side} px are smaller than the window of SSIM, "
                f"{SSIM_WINDOW} px. Give another --resolution"
            )
        candidates.append(_Candidate(label, found.config.build().eval().to(device), side))
    return candidates


def _baselines(
    candidates: Sequence[_Candidate],
    dataset: Dataset,
    frames: FrameList,
    samples: int,
    device: torch.device,
) -> tuple[list[_Candidate], str]:
    """The baselines of each resolution, grid and number of codes, and what k-means was fitted on.

    That is other images than are measured, where the dataset has enough; else the same ones, which
    flatters k-means.
    """
    count = min(samples, len(frames))
    compared = dict.fromkeys((*one.place, one.tokenizer.config.codebook_size) for one in candidates)
    wanted = max(images_to_fit(grid) for _, grid, _ in compared)
    measured = set(frames.spread(count))
    others = [place for place in frames.spread(count + wanted) if place not in measured]
    fitted_on = "images of the dataset that are not measured"
    if len(others) < min(wanted, count) // 2 or not others:
        others = list(frames.spread(wanted))
        fitted_on = "the measured images themselves, which flatters it: there are too few others"
    found: dict[tuple[str, int, tuple[int, int], int], _Candidate] = {}
    for resolution, grid, num_codes in compared:
        places = others[:: max(len(others) // images_to_fit(grid), 1)][: images_to_fit(grid)]
        fitting = (
            _pixels(_read(dataset, places[first : first + BATCH], resolution), device)
            for first in range(0, len(places), BATCH)
        )
        for name, tokenizer in baselines_of(grid, num_codes, fitting).items():
            one = _Candidate(name, tokenizer.eval().to(device), resolution)
            found[name, *one.place, tokenizer.config.codebook_size] = one
    return list(found.values()), fitted_on


def _warn_of_worse_than_means(
    candidates: Sequence[_Candidate],
    qualities: Sequence[ReconstructionQuality],
    baselines: Sequence[_Candidate],
    measured: Sequence[ReconstructionQuality],
) -> None:
    means = {
        one.place: quality.psnr
        for one, quality in zip(baselines, measured, strict=True)
        if one.label == CELL_MEAN
    }
    for one, quality in zip(candidates, qualities, strict=True):
        if quality.psnr < means[one.place]:
            say(
                f"warning: {one.label} keeps less ({quality.psnr:.2f} dB) than the mean colour of "
                f"each cell of its grid ({means[one.place]:.2f} dB)"
            )


def _measure_all(
    candidates: Sequence[_Candidate],
    dataset: Dataset,
    frames: FrameList,
    samples: int,
    device: torch.device,
) -> list[ReconstructionQuality]:
    """One after the other, on the same frames, which are decoded anew for each."""
    count = min(samples, len(frames))
    done = 0

    with progress_bar(f"evaluating on {dataset.path}", "pictures") as progress:

        def batches(resolution: int) -> Iterator[Tensor]:
            nonlocal done
            places = frames.spread(count)
            while batch := list(itertools.islice(places, BATCH)):
                yield _pixels(_read(dataset, batch, resolution), device)
                done += len(batch)
                progress(done, count * len(candidates))

        return [measure(one.tokenizer, batches(one.resolution)) for one in candidates]


def _read(dataset: Dataset, places: Sequence[tuple[int, int]], resolution: int) -> Pictures:
    """These (sample, frame), in their centre square: `BHWC`."""
    clip = ClipConfig(frames=1, stride=1, resolution=resolution)
    frames = [read_clip(dataset, sample, frame, clip)[0] for sample, frame in places]
    return np.stack(frames).astype(np.uint8, copy=False)


def _pixels(pictures_BHWC: Pictures, device: torch.device) -> Tensor:
    return torch.from_numpy(pictures_BHWC).to(device).permute(0, 3, 1, 2).float() / 255


def _side_by_side(
    candidates: Sequence[_Candidate],
    dataset: Dataset,
    places: Sequence[tuple[int, int]],
    device: torch.device,
) -> Pictures:
    """Rows of originals at each resolution, and of what each tokenizer makes of them: `HWC`.

    All in one size, enlarged by repeating pixels.
    """
    largest = max(one.resolution for one in candidates)
    side = largest * pixel_scale(largest)
    rows: dict[str, Pictures] = {}
    for resolution in dict.fromkeys(one.resolution for one in candidates):
        originals_BHWC = _read(dataset, places, resolution)
        rows[f"original, {resolution} px"] = _enlarged(originals_BHWC, side)
        for one in candidates:
            if one.resolution == resolution:
                _, decoded_BCHW = reconstruct(one.tokenizer, _pixels(originals_BHWC, device))
                decoded_BHWC = (decoded_BCHW * 255).round().byte().permute(0, 2, 3, 1)
                rows[f"{one.label}, {resolution} px"] = _enlarged(decoded_BHWC.cpu().numpy(), side)
    is_video = dataset.kind == "videos"
    captions = [f"{i}, frame {frame}" if is_video else str(i) for i, frame in places]
    return sheet(rows, captions)


def _enlarged(pictures_BHWC: Pictures, side: int) -> Pictures:
    """Nearest neighbour, to any size."""
    source = np.arange(side) * pictures_BHWC.shape[1] // side
    return pictures_BHWC[:, source][:, :, source]


def _record(
    candidates: Sequence[_Candidate],
    qualities: Sequence[ReconstructionQuality],
    dataset: Dataset,
    num_frames: int,
    shown: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    """What evaluation.json holds."""
    return {
        "dataset": {
            "path": dataset.path,
            "fingerprint": dataset.fingerprint(),
            "kind": dataset.kind,
            "frames": num_frames,
            "pictures": qualities[0].pictures,
        },
        "definitions": DEFINITIONS,
        "tokenizers": {
            one.label: {
                "tokenizer": one.tokenizer.config.model_dump(mode="json"),
                "fingerprint": one.tokenizer.fingerprint(),
                "resolution": one.resolution,
                "grid": one.tokenizer.config.grid(one.resolution),
                **asdict(quality),
            }
            for one, quality in zip(candidates, qualities, strict=True)
        },
        "shown": [
            {"sample": sample, "frame": frame, "key": dataset.key(sample)}
            for sample, frame in shown
        ],
        "versions": versions(),
    }


def _say_results(
    candidates: Sequence[_Candidate], qualities: Sequence[ReconstructionQuality]
) -> None:
    rows = []
    for one, quality in zip(candidates, qualities, strict=True):
        height, width = one.tokenizer.config.grid(one.resolution)
        used, perplexity = NO_VALUE, NO_VALUE
        if quality.codebook is not None:
            codes = quality.codebook
            used = f"{codes.used:,} of {codes.size:,} ({codes.share:.1%})"
            perplexity = f"{codes.perplexity:,.1f}"
        rows.append([
            one.label, str(one.resolution), f"{height}×{width}", f"{quality.psnr:.2f}",
            f"{quality.psnr_of_mean_error:.2f}", f"{quality.ssim:.4f}", used, perplexity,
        ])  # fmt: skip
    say(f"{number_of(qualities[0].pictures, 'picture')}, the same for each tokenizer:")
    say_table(HEAD, rows)
    if any(quality.codebook is None for quality in qualities):
        say("– a tokenizer of continuous patches has no codebook")
    if len({one.resolution for one in candidates}) > 1:
        say("PSNR and SSIM are of pictures of each tokenizer's own size; compare them within one")
