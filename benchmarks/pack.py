"""Packing JPEGs against a plain tar of the same files: pictures and megabytes a second.

Two sets: small pictures as they are in FOLDER, and larger ones, 500 × 375, each a mosaic of them at
quality 90 (about as many bytes as ImageNet's). The contenders alternate: in each round every one
works through the whole set, in an order that rotates. `tar` reads the files and writes one archive,
synced to the disk as our shards are; it decodes nothing. `tar` and we find the files in the page
cache, both. A ratio is taken within a round; the table gives the median and the range over rounds.
Time of the processors is what a busy machine leaves meaningful: on C idle cores that are the bound,
C / that time is the rate.

    mkdir /tmp/tiny && tar -xf tiny-imagenet-100/train.tar -C /tmp/tiny
    python benchmarks/pack.py /tmp/tiny [--files 5000] [--rounds 5] [--workers 2]
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from toto.data.pack import pack, plan_pack
from toto.data.workers import num_cores
from toto.files import sync

if TYPE_CHECKING:
    from collections.abc import Callable

LARGE = (500, 375)
LARGE_QUALITY = 90
SEED = 0


def choose(folder: Path, count: int, out: Path) -> Path:
    """Copy `count` JPEGs of a folder, in folders by class, to `out`."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if len(found) < count:
        raise SystemExit(f"{folder} holds {len(found)} JPEGs. Give --files {len(found)}")
    rng = np.random.default_rng(SEED)
    for number in sorted(rng.choice(len(found), count, replace=False).tolist()):
        path = found[number]
        target = out / path.parent.name / f"{number}_{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return out


def enlarge(small: Path, out: Path) -> Path:
    """As many mosaics of the small pictures, in the same folders."""
    paths = sorted(path for path in small.rglob("*") if path.is_file())
    tiles = [np.asarray(Image.open(path).convert("RGB").resize((64, 64))) for path in paths]
    rng = np.random.default_rng(SEED)
    columns, rows = -(-LARGE[0] // 64), -(-LARGE[1] // 64)
    for path in paths:
        chosen = rng.integers(len(tiles), size=(rows, columns))
        mosaic = np.concatenate([np.concatenate([tiles[n] for n in row], 1) for row in chosen])
        target = out / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(mosaic[: LARGE[1], : LARGE[0]])
        picture.save(target, "JPEG", quality=LARGE_QUALITY)
    return out


def tar(source: Path, out: Path) -> None:
    """The plain copy."""
    subprocess.run(["tar", "-cf", str(out), "-C", str(source), "."], check=True)
    sync(out)


def toto_pack(workers: int, source: Path, out: Path) -> None:
    """Ours, from the listing of the folder to the published dataset."""
    pack(plan_pack(source), out, workers=workers)


def measure(
    contenders: dict[str, Callable[[Path, Path], None]], source: Path, rounds: int, scratch: Path
) -> dict[str, list[tuple[float, float]]]:
    """Seconds, and seconds of all processors, of every contender in every round."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            out = scratch / "out"
            os.sync()
            start, busy = time.perf_counter(), processor_seconds()
            contenders[name](source, out)
            seconds[name].append((time.perf_counter() - start, processor_seconds() - busy))
            shutil.rmtree(out) if out.is_dir() else out.unlink()
    return {name: values[1:] for name, values in seconds.items()}  # the first one warms up


def processor_seconds() -> float:
    """Of this process and of its children that ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def spread(values: list[float], digits: str) -> str:
    """Median and range."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{digits}} ({low:{digits}}–{high:{digits}})"


def report(title: str, source: Path, found: dict[str, list[tuple[float, float]]]) -> str:
    """One set as a table."""
    sizes = [path.stat().st_size for path in source.rglob("*") if path.is_file()]
    rows = [
        f"### {title}: {len(sizes):,} JPEGs, {sum(sizes) / 1e6:,.1f} MB, "
        f"{sum(sizes) / len(sizes) / 1e3:,.1f} kB each\n",
        "| | pictures/s | MB/s | time of tar / time | processor ms a picture |",
        "|---|---|---|---|---|",
    ]
    for name, seconds in found.items():
        rates = [len(sizes) / wall for wall, _ in seconds]
        megabytes = [sum(sizes) / 1e6 / wall for wall, _ in seconds]
        ratios = [
            theirs / ours for (theirs, _), (ours, _) in zip(found["tar"], seconds, strict=True)
        ]
        busy = [processor / len(sizes) * 1e3 for _, processor in seconds]
        rows.append(
            f"| {name} | {spread(rates, ',.0f')} | {spread(megabytes, ',.1f')} | "
            f"{spread(ratios, '.2f')} | {spread(busy, '.3f')} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Measure both sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="JPEGs, in folders by class")
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=num_cores())
    options = parser.parse_args()
    contenders = {
        "tar": tar,
        f"toto pack, {options.workers} workers": partial(toto_pack, options.workers),
        "toto pack, one process": partial(toto_pack, 0),
    }
    print(f"{num_cores()} cores; median (range) of {options.rounds} rounds\n")
    with tempfile.TemporaryDirectory(dir=options.folder.parent) as name:
        scratch = Path(name)
        small = choose(options.folder, options.files, scratch / "small")
        sets = {"small": small, "500 × 375": enlarge(small, scratch / "large")}
        for title, source in sets.items():
            found = measure(contenders, source, options.rounds, scratch)
            print(report(title, source, found) + "\n", flush=True)


if __name__ == "__main__":
    main()
