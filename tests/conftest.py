"""Fixtures of the whole suite: tiny real files, packed once a session."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import av
import numpy as np
import pytest
import torch
from PIL import Image

from toto.data.pack import pack_folder
from toto.jobs.inspect import REGISTRIES

SIDE = 32

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes share the cores: more threads would only wait for each other.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _baselines_need_few_tokens():
    """Tiny data would else be counted hundreds of times over at every `toto train`."""
    with mock.patch("toto.jobs.held_out.BASELINE_TOKENS", 2**12):
        yield


@pytest.fixture(autouse=True)
def _parts_go_with_their_test(monkeypatch):
    """What a test registers is gone after it: two tests may take the same name."""
    for registry in REGISTRIES.values():
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))


def moving_square(label: int, number: int, frames: int) -> np.ndarray:
    """Frames THWC of a bright square that moves right (label 0) or down (label 1)."""
    rng = np.random.default_rng((label, number))
    background = rng.integers(0, 120, (SIDE // 8, SIDE // 8, 3)).repeat(8, 0).repeat(8, 1)
    row, column = rng.integers(0, SIDE - 8, 2)
    video = np.empty((frames, SIDE, SIDE, 3), np.uint8)
    for t in range(frames):
        video[t] = background
        y = (row + 2 * t * label) % (SIDE - 8)
        x = (column + 2 * t * (1 - label)) % (SIDE - 8)
        video[t, y : y + 8, x : x + 8] = 230
    return video


def write_video(path: Path, frames_THWC: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for frame in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory) -> Path:
    """Folders `videos-train`, `videos-val` (two classes) and `pictures`, not packed."""
    root = tmp_path_factory.mktemp("tiny")
    for split, numbers in (("train", range(6)), ("val", range(100, 103))):
        for label, name in enumerate(("right", "down")):
            for number in numbers:
                video = moving_square(label, number, 12)
                write_video(root / f"videos-{split}" / name / f"{number}.mp4", video)
    (root / "pictures").mkdir()
    for number in range(7):
        Image.fromarray(moving_square(0, 50 + number, 1)[0]).save(root / f"pictures/{number}.png")
    return root


@pytest.fixture(scope="session")
def tiny_datasets(tiny_folders) -> Path:
    """The same, packed: `data/videos-train`, `data/videos-val`, `data/pictures`."""
    root = tiny_folders / "data"
    root.mkdir()
    for name in ("videos-train", "videos-val", "pictures"):
        pack_folder(tiny_folders / name, root / name)
    return root
