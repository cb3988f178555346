"""Token shards to batches in host memory: tokens per second, beside a webdataset pipeline.

Two datasets of synthetic 16 × 16 codes: videos of 160 frames, cut into clips of 16 at stride 4, and
single pictures, 16 random ones a sequence. Each side has one worker process and delivers batches of
64 sequences as int64 tensors in pinned memory where there is a GPU. The webdataset pipeline reads
the same shards: decode the .npy, cut a random clip or gather 16 pictures, shuffle 1000, batch. Both
alternate in one process; the table gives the median and the range over rounds.

    python benchmarks/token_loading.py [--rounds 5] [--sequences 4096]
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import webdataset

from toto.data.config import ClipConfig
from toto.data.index import Dataset
from toto.data.loader import training_batches
from toto.data.manifest import Kind, TokenInfo
from toto.data.shards import DatasetWriter
from toto.data.stream import Stream, StreamSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLIP = ClipConfig(frames=16, stride=4, resolution=128)
SIDE = 16
TOKENS = CLIP.frames * SIDE * SIDE
BATCH = 64
SHUFFLE = 1000
SIZES: dict[Kind, tuple[int, int]] = {"videos": (2_000, 160), "images": (60_000, 1)}


def make_dataset(folder: Path, kind: Kind) -> Dataset:
    """Random codes: samples and frames as in SIZES."""
    samples, frames = SIZES[kind]
    info = TokenInfo(
        tokenizer={"name": "synthetic"}, fingerprint="0" * 64, resolution=128, grid=(SIDE, SIDE)
    )
    rng = np.random.default_rng(0)
    out = folder / kind
    with DatasetWriter(out, kind=kind, form="tokens", tokens=info) as writer:
        for number in range(samples):
            file = io.BytesIO()
            np.save(file, rng.integers(0, 8192, (frames, SIDE, SIDE), dtype=np.uint16))
            writer.add(f"{number:06d}", "npy", file.getvalue(), origin="", frames=frames)
    return Dataset.open(out)


def run_toto(dataset: Dataset, sequences: int, seed: int) -> Iterator[torch.Tensor]:
    """Toto's stream and loader."""
    stream = Stream([StreamSource("a", dataset)], CLIP, seed)
    steps = training_batches(
        stream,
        batch_sequences=BATCH,
        micro_batch=BATCH,
        workers=1,
        start_step=0,
        stop_step=sequences // BATCH,
    )
    for (batch,) in steps:
        assert batch.codes_BTHW is not None
        yield batch.codes_BTHW


def run_webdataset(dataset: Dataset, sequences: int, seed: int) -> Iterator[torch.Tensor]:
    """The same shards through webdataset."""
    shards = [str(path) for path in sorted(dataset.path.glob("shard-*.tar"))]
    rng = np.random.default_rng(seed)

    def clip(sample: dict[str, Any]) -> np.ndarray[Any, Any]:
        codes = np.load(io.BytesIO(sample["npy"]))
        start = rng.integers(len(codes) - CLIP.span + 1) if len(codes) > 1 else 0
        return codes[start : start + CLIP.span : CLIP.stride].astype(np.int64)

    def gather(clips: Iterator[np.ndarray[Any, Any]]) -> Iterator[np.ndarray[Any, Any]]:
        pictures: list[np.ndarray[Any, Any]] = []
        for codes in clips:
            pictures.append(codes)
            if sum(map(len, pictures)) == CLIP.frames:
                yield np.concatenate(pictures)
                pictures = []

    pipeline = webdataset.DataPipeline(
        webdataset.ResampledShards(shards, seed=seed),
        webdataset.tarfile_to_samples(),
        webdataset.shuffle(SHUFFLE),
        webdataset.map(clip),
        gather,
        webdataset.batched(BATCH, collation_fn=lambda items: torch.from_numpy(np.stack(items))),
    )
    loader = webdataset.WebLoader(pipeline, batch_size=None, num_workers=1)
    for number, batch in enumerate(loader, start=1):
        yield batch
        if number == sequences // BATCH:
            return


def speed(batches: Iterator[torch.Tensor]) -> float:
    """Tokens a second from the first batch on; the start of the worker is left out."""
    next(batches)
    begun, tokens = time.perf_counter(), 0
    for batch in batches:
        if torch.cuda.is_available():
            batch = batch.pin_memory()
        tokens += batch.numel()
    return tokens / (time.perf_counter() - begun)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sequences", type=int, default=4096)
    arguments = parser.parse_args()
    sides: dict[str, Callable[[Dataset, int, int], Iterator[torch.Tensor]]] = {
        "toto": run_toto,
        "webdataset": run_webdataset,
    }
    print(f"webdataset {webdataset.__version__}, torch {torch.__version__}, batches of {BATCH}")
    print(f"{'':<8}{'toto, M tokens/s':>28}{'webdataset':>28}{'ratio':>22}")
    with tempfile.TemporaryDirectory() as folder:
        for kind in SIZES:
            dataset = make_dataset(Path(folder), kind)
            rounds = [
                {
                    name: speed(side(dataset, arguments.sequences, seed))
                    for name, side in sides.items()
                }
                for seed in range(arguments.rounds)
            ]
            cells = [[one[name] / 1e6 for one in rounds] for name in sides]
            cells.append([one["toto"] / one["webdataset"] for one in rounds])
            shown = [
                f"{statistics.median(cell):.2f} ({min(cell):.2f} to {max(cell):.2f})"
                for cell in cells
            ]
            print(f"{kind:<8}{shown[0]:>28}{shown[1]:>28}{shown[2]:>22}", flush=True)


if __name__ == "__main__":
    main()
