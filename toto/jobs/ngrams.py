"""`toto analyze ngrams`: how the codes of token datasets are distributed, beside each other."""

from __future__ import annotations

import csv
import io
import itertools
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from toto.analysis.figures import draw_ngrams
from toto.analysis.ngrams import (
    DEFINITIONS,
    MAX_N,
    NgramCounter,
    NgramStatistics,
    statistics,
)
from toto.data.clips import FrameList
from toto.errors import DataError, UndecodableError
from toto.files import write_atomic
from toto.folders import held_folder, new_folder
from toto.jobs.component import described_component
from toto.jobs.console import progress_bar, say, say_table
from toto.jobs.labels import distinct_labels
from toto.jobs.sources import open_dataset
from toto.jobs.trained import import_all
from toto.tokenizers.config import TOKENIZERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from toto.data.index import Dataset

__all__ = ["analyze_ngrams"]

CHUNK_TOKENS = 2**20
SHOWN_RANKS = (10, 1_000)
HEAD = (
    "tokens of", "n", "distinct", "of at most", "most frequent", "entropy nats", "bits",
    "perplexity", *(f"top {k:,}" for k in SHOWN_RANKS),
)  # fmt: skip

Codes = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class _Tokens:
    """A token dataset that is analyzed."""

    label: str
    dataset: Dataset
    codebook_size: int
    images: int
    frames: FrameList


def analyze_ngrams(
    paths: Sequence[str],
    out: Path,
    *,
    images: int | None,
    labels: Sequence[str],
    imports: Sequence[str],
) -> None:
    """Count 1-, 2- and 3-grams, and write OUT.

    Every picture, and every frame of a video, is an image. Memory grows with the distinct n-grams
    of one dataset; see `toto.analysis.ngrams`.

    Args:
        paths: of token datasets, or their addresses.
        out: the folder of ngrams.json (statistics), ngrams.csv (the sorted histograms) and
            ngrams.png (both axes logarithmic); an earlier result there is replaced.
        images: how many of each dataset, spread over it; None for all.
        labels: of the datasets; none for the names of their folders.
        imports: plug-ins to import first.

    Raises:
        DataError: raw shards, images of fewer than three tokens, or codes beyond the codebook.
        UserError: two datasets of one name, a tokenizer that is not installed, or a folder that
            holds other files, cannot be written, or is being written.
    """
    import_all(imports)
    datasets = [open_dataset(path) for path in paths]
    named = zip(datasets, distinct_labels([one.name for one in datasets], labels), strict=True)
    tokens = [_examine(dataset, label, images) for dataset, label in named]
    with held_folder(out, "toto analyze ngrams") as folder:
        results = {one.label: _count(one) for one in tokens}
        record = json.dumps(_record(tokens, results), indent=2) + "\n"
        with new_folder(folder) as unfinished:
            draw_ngrams(unfinished / "ngrams.png", results)
            write_atomic(unfinished / "ngrams.csv", _histograms(results))
            write_atomic(unfinished / "ngrams.json", record)
    _say_results(results)
    say(f"{out}: ngrams.json, ngrams.csv, ngrams.png")


def _examine(dataset: Dataset, label: str, images: int | None) -> _Tokens:
    """What is to be counted, once it is sure that it can be."""
    if dataset.form != "tokens":
        raise DataError(
            f"{dataset.path} holds {dataset.kind}, and n-grams are of tokens. Tokenize it: "
            f"toto tokenize {dataset.path} OUT --recipe RECIPE"
        )
    height, width = dataset.tokens.grid
    if height * width < MAX_N:
        raise DataError(
            f"{dataset.path}: images of {height} × {width} tokens have no {MAX_N}-grams. Tokenize "
            "at a higher resolution"
        )
    config = described_component(TOKENIZERS, dataset.tokens.tokenizer, dataset.path)
    frames = FrameList(dataset)
    count = len(frames) if images is None else min(images, len(frames))
    return _Tokens(label, dataset, config.codebook_size, count, frames)


def _count(tokens: _Tokens) -> list[NgramStatistics]:
    counters = [NgramCounter(n) for n in range(1, MAX_N + 1)]
    done = 0
    with progress_bar(f"counting {tokens.label}", "images") as progress:
        for codes_BL in _chunks(tokens):
            for counter in counters:
                counter.add(codes_BL)
            done += len(codes_BL)
            progress(done, tokens.images)
    return [statistics(counter.counts(), tokens.codebook_size) for counter in counters]


def _chunks(tokens: _Tokens) -> Iterator[Codes]:
    """The raster sequences `[B, L]` of the images, about CHUNK_TOKENS tokens at once."""
    dataset = tokens.dataset
    height, width = dataset.tokens.grid
    places = tokens.frames.spread(tokens.images)
    while chunk := list(itertools.islice(places, -(-CHUNK_TOKENS // (height * width)))):
        try:
            frames = [dataset.read_codes(sample, frame, 1, 1) for sample, frame in chunk]
        except UndecodableError as error:
            raise DataError(f"{dataset.path}: {error}") from error
        yield np.concatenate(frames).reshape(len(chunk), height * width)


def _record(tokens: Sequence[_Tokens], results: dict[str, list[NgramStatistics]]) -> dict[str, Any]:
    """What ngrams.json holds."""
    return {
        "definitions": DEFINITIONS,
        "datasets": {
            one.label: {
                "path": one.dataset.path,
                "fingerprint": one.dataset.fingerprint(),
                "of_images": len(one.frames),
                "images": one.images,
                "codebook_size": one.codebook_size,
                "tokens": one.dataset.tokens.model_dump(mode="json"),
                "ngrams": [_scalars(statistics) for statistics in results[one.label]],
            }
            for one in tokens
        },
    }


def _scalars(statistics: NgramStatistics) -> dict[str, Any]:
    """All but the histogram, which has a file of its own."""
    fields = asdict(statistics)
    return {name: value for name, value in fields.items() if not isinstance(value, np.ndarray)}


def _histograms(results: dict[str, list[NgramStatistics]]) -> str:
    """How many n-grams occur how often: what the figure shows, to the last n-gram."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["label", "n", "occurrences", "ngrams"])
    for label, of_label in results.items():
        for one in of_label:
            for value, ngrams in zip(one.values_M.tolist(), one.ngrams_M.tolist(), strict=True):
                writer.writerow([label, one.n, value, ngrams])
    return file.getvalue()


def _say_results(results: dict[str, list[NgramStatistics]]) -> None:
    rows = [
        [
            label,
            str(one.n),
            f"{one.distinct:,}",
            f"{min(one.possible, one.windows):,}",
            f"{one.most:,}",
            f"{one.entropy_nats:.3f}",
            f"{one.entropy_bits:.3f}",
            f"{one.perplexity:,.0f}",
            *(f"{one.coverage.get(k, 1.0):.2%}" for k in SHOWN_RANKS),
        ]
        for label, of_label in results.items()
        for one in of_label
    ]
    say_table(HEAD, rows)
    say("at most: as many as the codebook allows, or as there are n-grams; top k: the share of all")
    say("n-grams that the k most frequent make up")
