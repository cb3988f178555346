"""Small pictures, videos and datasets for the tests of the data."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import ClassVar, Literal

import av
import numpy as np
import torch
from PIL import Image

from toto.data.encode import encode_h264
from toto.data.index import Dataset
from toto.data.manifest import TokenInfo
from toto.data.shards import DatasetWriter
from toto.tokenizers.base import PatchGrid, TokenGrid, Tokenizer
from toto.tokenizers.config import TokenizerConfig


def random_picture(seed, height=16, width=16):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def moving_frames(count, height=32, width=48):
    """Smooth frames, each unlike every other."""
    y, x = np.mgrid[:height, :width]
    frames = [
        np.stack([x * 5 + t * 3, y * 7 + t * 5, x + y + t * 7], axis=-1) for t in range(count)
    ]
    return (np.stack(frames) % 256).astype(np.uint8)


@dataclass(frozen=True)
class Codec:
    """A way to encode: container, encoder, its options, pixel format and the muxer's options."""

    container: str
    name: str
    options: tuple[tuple[str, str], ...] = ()
    pixels: str = "yuv420p"
    muxer: tuple[tuple[str, str], ...] = ()


def encode(frames, codec):
    file = io.BytesIO()
    with av.open(file, "w", format=codec.container, options=dict(codec.muxer)) as container:
        stream = container.add_stream(codec.name, rate=25, options=dict(codec.options))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = codec.pixels
        # More threads give other bytes from run to run.
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def edit_manifest(folder, **changes):
    """Write a manifest with these fields and no checksum."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"checksum": None} | changes))


def without_checksums(dataset):
    """Return the dataset as an older toto packed it: checksums of the shards alone."""
    path = dataset.folder / "manifest.json"
    shards = json.loads(path.read_text())["shards"]
    shards = [{key: shard[key] for key in shard if key != "columns"} for shard in shards]
    edit_manifest(dataset.folder, origins_sha256=None, shards=shards)
    return Dataset.open(dataset.folder)


def write_dataset(out, samples, *, kind, extension, shard_samples=10_000):
    """A raw dataset of (payload, frames, label)."""
    labels = {label for _, _, label in samples} - {-1}
    with DatasetWriter(
        out,
        kind=kind,
        form="raw",
        classes=tuple(f"class{label}" for label in sorted(labels)),
        max_shard_samples=shard_samples,
    ) as writer:
        for number, (payload, frames, label) in enumerate(samples):
            writer.add(
                f"{number:06d}",
                extension,
                payload,
                origin=f"{number}.{extension}",
                frames=frames,
                label=label,
            )
    return Dataset.open(out)


def picture_dataset(out, count, *, shard_samples=10_000, broken=()):
    """Pictures of one colour, which is their number; label = number mod 3."""
    samples = []
    for number in range(count):
        payload = png(np.full((8, 8, 3), number % 256, np.uint8))
        samples.append((b"no picture" if number in broken else payload, 1, number % 3))
    return write_dataset(out, samples, kind="images", extension="png", shard_samples=shard_samples)


def video_dataset(out, lengths, *, shard_samples=10_000):
    samples = [(encode_h264(moving_frames(length), fps=25), length, -1) for length in lengths]
    return write_dataset(out, samples, kind="videos", extension="mp4", shard_samples=shard_samples)


def token_dataset(out, lengths, *, resolution=32, shard_samples=10_000, fingerprint="f" * 64):
    """Videos of 2×2 codes: sample · 1000 + frame · 4 + place."""
    info = TokenInfo(
        tokenizer={"name": "toy"}, fingerprint=fingerprint, resolution=resolution, grid=(2, 2)
    )
    with DatasetWriter(
        out, kind="videos", form="tokens", tokens=info, max_shard_samples=shard_samples
    ) as writer:
        for number, length in enumerate(lengths):
            file = io.BytesIO()
            np.save(
                file, (np.arange(length * 4).reshape(length, 2, 2) + number * 1000).astype("<u2")
            )
            writer.add(f"{number:06d}", "npy", file.getvalue(), origin=str(number), frames=length)
    return Dataset.open(out)


class ToyTokenizerConfig(TokenizerConfig):
    """16 px per token; the code is the mean brightness plus `shift`."""

    shift: int = 0

    @property
    def codebook_size(self):
        return 300

    def grid(self, resolution):
        if resolution % 16:
            raise ValueError(f"{resolution} px is no multiple of 16")
        return resolution // 16, resolution // 16

    def build(self):
        return ToyTokenizer(self)


class ToyTokenizer(Tokenizer):
    def encode(self, pixels_BCHW):
        mean_BHW = torch.nn.functional.avg_pool2d(pixels_BCHW, 16).mean(1)
        return TokenGrid((mean_BHW * 255).round().long() + self.config.shift)

    def decode(self, grid):
        raise NotImplementedError


class ToyPatchConfig(ToyTokenizerConfig):
    output: ClassVar[Literal["codes", "patches"]] = "patches"

    def build(self):
        return ToyPatches(self)


class ToyPatches(ToyTokenizer):
    def encode(self, pixels_BCHW):
        flat = pixels_BCHW.flatten(1)[:, None, None]
        return PatchGrid(flat, flat[..., :1], flat[..., :1])
