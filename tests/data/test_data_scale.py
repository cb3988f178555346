"""What an index of 10^8 samples in 10^4 shards costs; sparse files, which take no space."""

import json
import subprocess
import sys
import tarfile
import time
import tracemalloc

import numpy as np
import pytest

from toto.data.config import ClipConfig
from toto.data.index import COLUMNS, Dataset, column_file
from toto.data.loader import training_batches
from toto.data.order import Shuffled
from toto.data.stream import Stream, StreamSource

SHARDS = 10_000
GRID = 2


def write_sparse(folder, *, shards, samples, tokens=None, payload=0):
    """A dataset whose columns are zeros, but for sizes where there is a payload."""
    folder.mkdir()
    member = tarfile.TarInfo("0.npy")
    member.size = payload
    header = member.tobuf(tarfile.GNU_FORMAT)
    shard_bytes = len(header) + payload
    entries = [
        {"name": f"shard-{n:05d}.tar", "samples": samples, "bytes": shard_bytes, "sha256": f"{n:x}"}
        for n in range(shards)
    ]
    manifest = {"format_version": 2, "kind": "images", "shards": entries}
    manifest |= {"form": "tokens" if tokens else "raw", "tokens": tokens}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for name, dtype in COLUMNS.items():
        values = {"offset": 512, "size": payload, "frames": 1}.get(name, 0) if payload else 0
        with (folder / column_file(name)).open("wb") as file:
            if values:
                np.full(shards * samples, values, dtype).tofile(file)
            file.truncate(shards * samples * np.dtype(dtype).itemsize)
    if payload:
        for entry in entries:
            with (folder / entry["name"]).open("wb") as file:
                file.write(header)
                file.truncate(shard_bytes)


DRAW = """
import sys, time
import numpy as np
from toto.data.config import ClipConfig
from toto.data.index import Dataset
from toto.data.stream import SourceStream

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

before = resident()
begin = time.perf_counter()
dataset = Dataset.open(sys.argv[1])
opened = time.perf_counter() - begin
source = SourceStream.shuffled(dataset, ClipConfig(), seed=0, name="images")
begin = time.perf_counter()
for step in range(100):
    source.draw(np.arange(256 * step, 256 * (step + 1)) + 9 * 10**12)
drawn = time.perf_counter() - begin
print(source.num_units, opened, drawn / 100, resident() - before)
"""


def test_a_hundred_million_samples_open_and_draw_cheaply(tmp_path):
    write_sparse(tmp_path / "d", shards=SHARDS, samples=10_000)
    printed = subprocess.run(
        [sys.executable, "-c", DRAW, str(tmp_path / "d")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    units, opened, drawn, resident = map(float, printed)
    assert units == 10**8
    assert opened < 1.0
    assert drawn < 0.02
    assert resident < 200e6  # beside torch, which every process of a run holds


def test_the_order_takes_less_than_a_megabyte():
    units_S = np.full(SHARDS, 10_000)

    def draw(order):
        for epoch in (0, 1, 2, 10**6):
            order.draw(np.arange(256) + epoch * order.num_units)
            order.upcoming(epoch * order.num_units)

    draw(Shuffled(units_S[:20], seed=0, source="s"))  # what numpy allocates once
    tracemalloc.start()
    try:
        order = Shuffled(units_S, seed=0, source="s")
        draw(order)
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 500_000
    assert most < 1_000_000


@pytest.mark.parametrize("position", [0, 10**9, 10**12])
def test_a_resumed_run_starts_within_two_seconds(tmp_path, position):
    info = {"tokenizer": {}, "fingerprint": "f", "resolution": 16, "grid": [GRID, GRID]}
    payload = 128 + GRID * GRID * 2
    write_sparse(tmp_path / "d", shards=1_000, samples=1_000, tokens=info, payload=payload)
    dataset = Dataset.open(tmp_path / "d")
    begin = time.perf_counter()
    stream = Stream([StreamSource("d", dataset)], ClipConfig(resolution=16), 0)
    steps = training_batches(
        stream,
        batch_sequences=250,
        micro_batch=250,
        workers=0,
        start_step=position // 250,
        stop_step=position // 250 + 1,
    )
    (batch,) = next(iter(steps))
    assert time.perf_counter() - begin < 2
    assert batch.position_B[0] == position
