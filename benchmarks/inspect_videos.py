"""Checking videos for packing: every frame decoded, against packets counted and two frames decoded.

The second way is that of datasets of format version 2. It is faster and takes packets for frames,
which they are not in every file. Both take the same files from memory, alternating, on one core; a
second is one of the core's time.

    python benchmarks/inspect_videos.py FOLDER [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from toto.data.decode import VIDEO_EXTENSIONS, UndecodableError, decode_clip, inspect_media
from toto.data.video import read_timeline
from toto.data.video_file import MemoryFile, open_video


def inspect(payload: bytes) -> int:
    """Decode every frame, as packing does."""
    return inspect_media("videos", payload).frames


def count_packets(payload: bytes) -> int:
    """Count packets, and decode the first and the last frame."""
    with open_video(MemoryFile(payload)) as (container, stream):
        timeline = read_timeline(container, stream)
    if timeline is None:
        return inspect(payload)
    total = len(timeline.pts)
    for frame in {0, total - 1}:
        decode_clip(payload, frame, 1, 1, total=total)
    return total


def main() -> None:
    """Measure both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    paths = sorted(options.folder.rglob("*"))
    payloads = [p.read_bytes() for p in paths if p.suffix[1:].lower() in VIDEO_EXTENSIONS]
    seconds: dict[str, list[float]] = {}
    counts: dict[str, list[int]] = {}
    for _ in range(options.rounds):
        for check in (count_packets, inspect):
            begun, found = time.process_time(), []
            for payload in payloads:
                try:
                    found.append(check(payload))
                except UndecodableError:
                    found.append(0)
            seconds.setdefault(check.__name__, []).append(time.process_time() - begun)
            counts[check.__name__] = found
    megabytes = sum(map(len, payloads)) / 1e6
    frames = sum(counts["inspect"])
    differ = sum(a != b for a, b in zip(counts["count_packets"], counts["inspect"], strict=True))
    print(
        f"{len(payloads)} videos, {frames:,} frames, {megabytes:.1f} MB; {differ} counts differ\n"
    )
    print("| | videos/s | MB/s | ms a video |\n|---|---|---|---|")
    for name, values in seconds.items():
        middle, low, high = statistics.median(values), min(values), max(values)
        rate = len(payloads) / middle
        spread = f"({len(payloads) / high:.1f}–{len(payloads) / low:.1f})"
        each = middle / len(payloads) * 1e3
        print(f"| {name} | {rate:.1f} {spread} | {megabytes / middle:.1f} | {each:.1f} |")


if __name__ == "__main__":
    main()
