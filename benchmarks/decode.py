"""Random clips from videos: toto against decord and torchcodec, one thread, in one process.

Every contender runs on the same core and takes the same clips (16 frames, stride 4) of the same
files, from opening the file to a 128-px crop, and resizes with the same function
(`toto.data.transforms.square`); what differs is finding, decoding and converting the frames. The
contenders alternate in rounds, in an order that rotates. A second is one of the core's time, so
that other processes disturb less; a ratio is taken within a round, and the table gives the median
and the range. The last columns hold the crops against the plain path: all frames decoded, converted
to RGB, cropped, resized by Pillow.

    python benchmarks/decode.py [FOLDER ...] [--rounds 7] [--clips 40]

decord and torchcodec take part where they can be imported; a folder's videos make a table each.
"""

from __future__ import annotations

import argparse
import importlib
import io
import mmap
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch

from toto.data.config import ClipConfig
from toto.data.decode import VIDEO_EXTENSIONS, UndecodableError, decode_clip, inspect_media
from toto.data.transforms import square, square_cut, square_plainly
from toto.data.video import decode_clip_plainly
from toto.data.video_file import Frames

CLIP = ClipConfig()
HEIGHT, WIDTH, LENGTH = 256, 456, 300
VIDEOS = 6


@dataclass(frozen=True)
class Job:
    """One clip: its file, the file's number of frames, its first frame and crop."""

    path: Path
    total: int
    start: int
    crop: tuple[float, float]

    @property
    def frames(self) -> list[int]:
        """The numbers of its frames."""
        return list(range(self.start, self.start + CLIP.span, CLIP.stride))


Contender = Callable[[Job], Frames]


def cut(frames: Frames, job: Job) -> Frames:
    """The job's crop of its frames."""
    return square(frames, CLIP.resolution, crop_y=job.crop[0], crop_x=job.crop[1])


def mapped(path: Path) -> memoryview:
    """A file as a dataset hands out its samples."""
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def by_toto(job: Job) -> Frames:
    """Ours."""
    return decode_clip(
        mapped(job.path),
        job.start,
        CLIP.frames,
        CLIP.stride,
        total=job.total,
        cut=square_cut(CLIP.resolution, crop_y=job.crop[0], crop_x=job.crop[1]),
    )


def by_decord(job: Job) -> Frames:
    """The reader of decord, made anew as for any clip of a large dataset."""
    import decord

    reader = decord.VideoReader(str(job.path), ctx=decord.cpu(0), num_threads=1)
    return cut(reader.get_batch(job.frames).asnumpy(), job)


def by_torchcodec(seek_mode: str) -> Contender:
    """`exact` reads all packets first, `approximate` trusts the header."""

    def decode(job: Job) -> Frames:
        from torchcodec.decoders import VideoDecoder

        decoder = VideoDecoder(
            str(job.path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=seek_mode
        )
        return cut(decoder.get_frames_at(job.frames).data.numpy(), job)

    return decode


def plain(job: Job) -> Frames:
    """The plain path, that the others are held to."""
    frames = decode_clip_plainly(mapped(job.path), job.start, CLIP.frames, CLIP.stride)
    return square_plainly(frames, CLIP.resolution, crop_y=job.crop[0], crop_x=job.crop[1])


def contenders() -> dict[str, Contender]:
    """Those that can be imported, ours first."""
    found: dict[str, Contender] = {"toto": by_toto}
    others: dict[str, dict[str, Contender]] = {
        "decord": {"decord": by_decord},
        "torchcodec": {
            "torchcodec, exact": by_torchcodec("exact"),
            "torchcodec, approximate": by_torchcodec("approximate"),
        },
    }
    for module, decoders in others.items():
        try:
            version = importlib.import_module(module).__version__
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{module} takes no part: {str(error).strip().splitlines()[0]}")
        else:
            print(f"{module} {version}")
            found.update(decoders)
    return found


def synthetic_video(seed: int, gop: int) -> bytes:
    """H.264 of x264's defaults: a smooth random picture that moves, and a little noise."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 24, 36)).astype(np.float32))
    size = (HEIGHT + 128, WIDTH + 128)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")
    fine = torch.from_numpy(
        rng.normal(0, 12, (1, 3, size[0] // 2, size[1] // 2)).astype(np.float32)
    )
    picture = (smooth + torch.nn.functional.interpolate(fine, size=size))[0].permute(1, 2, 0)
    file = io.BytesIO()
    with av.open(file, mode="w", format="mp4") as container:
        options = {"g": str(gop), "keyint_min": str(gop), "crf": "23"}
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for t in range(LENGTH):
            y = int(64 + 60 * np.sin(t / 29 + seed))
            x = int(64 + 60 * np.cos(t / 37 + seed))
            noise = rng.normal(0, 3, (HEIGHT, WIDTH, 1)).astype(np.float32)
            frame = (picture[y : y + HEIGHT, x : x + WIDTH].numpy() + noise).clip(0, 255)
            shown = av.VideoFrame.from_ndarray(frame.astype(np.uint8), format="rgb24")
            container.mux(stream.encode(shown))
        container.mux(stream.encode(None))
    return file.getvalue()


def make_jobs(paths: list[Path], count: int) -> list[Job]:
    """`count` random clips of the videos that are long enough for one."""
    lengths = {}
    for path in paths:
        try:
            lengths[path] = inspect_media("videos", mapped(path)).frames
        except UndecodableError as error:
            print(f"left out: {path}: {error}")
    long = [path for path in paths if lengths.get(path, 0) >= CLIP.span]
    rng = random.Random(0)
    return [
        Job(
            path,
            lengths[path],
            rng.randrange(lengths[path] - CLIP.span + 1),
            (rng.random(), rng.random()),
        )
        for path in rng.choices(long, k=count)
    ]


def measure(jobs: list[Job], run: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Clips of each contender in each round, per second of the core."""
    rates: dict[str, list[float]] = {name: [] for name in run}
    names = list(run)
    for number in range(-1, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            begun = time.process_time()
            for job in jobs[: 2 if number < 0 else None]:
                run[name](job)
            if number >= 0:
                rates[name].append(len(jobs) / (time.process_time() - begun))
    return rates


def shown(values: list[float], digits: int) -> str:
    """Median and range."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def report(
    title: str, paths: list[Path], run: dict[str, Contender], args: argparse.Namespace
) -> None:
    """Measure one set of videos and print its table."""
    jobs = make_jobs(paths, args.clips)
    rates = measure(jobs, run, args.rounds)
    expected = [plain(job).astype(int) for job in jobs]
    print(f"\n### {title}\n\n| | clips/s | toto's ratio to it | mean difference | largest |")
    print("|---|---|---|---|---|")
    for name, decode in run.items():
        ratios = [ours / theirs for ours, theirs in zip(rates["toto"], rates[name], strict=True)]
        off = [np.abs(decode(job) - frames) for job, frames in zip(jobs, expected, strict=True)]
        mean, most = np.mean([o.mean() for o in off]), max(o.max() for o in off)
        print(f"| {name} | {shown(rates[name], 1)} | {shown(ratios, 2)} | {mean:.4f} | {most} |")


def main() -> None:
    """Parse the options and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clips", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(f"torch {torch.__version__}, PyAV {av.__version__} (ffmpeg {av.ffmpeg_version_info})")
    run = contenders()
    with tempfile.TemporaryDirectory() as folder:
        for gop in (12, 250):
            paths = [Path(folder) / f"{gop}-{seed}.mp4" for seed in range(VIDEOS)]
            for seed, path in enumerate(paths):
                path.write_bytes(synthetic_video(seed, gop))
            report(f"Synthetic, {WIDTH} × {HEIGHT}, a keyframe every {gop}", paths, run, args)
    for given in args.folders:
        names = sorted(given.rglob("*"))
        paths = [name for name in names if name.suffix.removeprefix(".") in VIDEO_EXTENSIONS]
        report(str(given), paths, run, args)


if __name__ == "__main__":
    main()
