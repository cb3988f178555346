"""Label propagation: toto's tiles against the DINO script's dense affinities, on the same features.

Both follow a video of random features that move by a token a frame, with an object on it, by
DINO's protocol (preset `dino`), in one process and one thread. `label_propagation` is taken from a
checkout of github facebookresearch/dino, as it is; its `.cuda()` calls are answered with the tensor
itself, and features come from memory instead of a network. Each round follows the whole video with
both, in an order that alternates; what either prepares once for a video, DINO's mask of neighbours
in Python loops and our tiles, is made before and not counted. A second is one of the core's time,
so that other processes disturb less; a ratio is taken within a round, and the table gives the
median and the range.

    python benchmarks/tracking.py DINO/eval_video_segmentation.py [--rounds 3] [--frames 10]
                                [--width 384] [--grids 32x32,60x107]
"""

from __future__ import annotations

import argparse
import ast
import statistics
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

from toto.evaluation.propagation import PRESETS, LabelTrack, labels_of, mask_of, tiles

DINO = PRESETS["dino"]
PATCH = 8
CPU = torch.device("cpu")
WANTED = ("label_propagation", "restrict_neighborhood")
Follow = Callable[[], list[Tensor]]


def video(height: int, width: int, channels: int, frames: int) -> list[Tensor]:
    """Features `HWD` of each frame: a random pattern that moves, and a little noise."""
    generator = torch.Generator().manual_seed(0)
    pattern_HWD = torch.randn(height, width, channels, generator=generator)
    return [
        pattern_HWD.roll(t, dims=1) + 0.5 * torch.randn(pattern_HWD.shape, generator=generator)
        for t in range(frames)
    ]


def first_labels(height: int, width: int) -> Tensor:
    """An object in the middle, on the background: HWC."""
    ids_HW = torch.zeros(height * PATCH, width * PATCH, dtype=torch.uint8)
    ids_HW[height * 2 : height * 5, width * 2 : width * 5] = 1
    return labels_of(ids_HW, 1, (height, width), DINO)


def ours(features: list[Tensor], labels_HWC: Tensor) -> Follow:
    """As `toto track` follows a video."""
    height, width = labels_HWC.shape[:2]
    cut = tiles(height, width, DINO, CPU)

    def follow() -> list[Tensor]:
        track = LabelTrack(features[0], labels_HWC, DINO, cut)
        return [track.follow(x_HWD) for x_HWD in features[1:]]

    return follow


def functions_of(script: Path) -> dict[str, Callable[..., object]]:
    """The two functions, without what else the script imports and does."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    body = [x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name in WANTED]
    if len(body) != len(WANTED):
        raise SystemExit(f"{script} does not define {' and '.join(WANTED)}")
    space: dict[str, object] = {"torch": torch, "nn": nn, "F": functional}
    space["args"] = Namespace(size_mask_neighborhood=DINO.radius, topk=DINO.top_k)
    exec(compile(ast.Module(body, []), str(script), "exec"), space)
    return space  # type: ignore[return-value]


def theirs(script: Path, features: list[Tensor], labels_HWC: Tensor) -> Follow:
    """The queue of the script's `eval_video_tracking_davis` around its `label_propagation`."""
    height, width = labels_HWC.shape[:2]
    space = functions_of(script)
    space["extract_feature"] = lambda model, frame, return_h_w=False: (
        frame.flatten(0, 1), height, width,
    )  # fmt: skip
    first_1CHW = labels_HWC.permute(2, 0, 1)[None]
    neighbours_1LL = space["restrict_neighborhood"](height, width)[None]

    def follow() -> list[Tensor]:
        last: deque[tuple[Tensor, Tensor]] = deque(maxlen=DINO.frames)
        found = []
        for frame_HWD in features[1:]:
            asked = [(features[0].flatten(0, 1).T, first_1CHW), *last]
            labels_1CHW, features_DL, _ = space["label_propagation"](
                space["args"], None, frame_HWD, *map(list, zip(*asked, strict=True)),
                neighbours_1LL,
            )  # fmt: skip
            last.append((features_DL, labels_1CHW))
            found.append(labels_1CHW[0].permute(1, 2, 0))
        return found

    return follow


def seconds(follow: Follow) -> float:
    """Of the core."""
    begun = time.process_time()
    follow()
    return time.process_time() - begun


def measure(script: Path, grid: tuple[int, int], args: argparse.Namespace) -> str:
    """One row of the table."""
    features, labels_HWC = video(*grid, args.width, args.frames), first_labels(*grid)
    sides = [ours(features, labels_HWC), theirs(script, features, labels_HWC)]
    found = [side() for side in sides]
    times: list[list[float]] = [[], []]
    for number in range(args.rounds):
        for index in (0, 1) if number % 2 == 0 else (1, 0):
            times[index].append(seconds(sides[index]))
    ratios = [their / our for our, their in zip(*times, strict=True)]
    apart = max(float((a - b).abs().max()) for a, b in zip(*found, strict=True))
    size = (grid[0] * PATCH, grid[1] * PATCH)
    masks = [
        torch.stack([mask_of(labels, max(size), size, DINO) for labels in of_side])
        for of_side in found
    ]
    other = int((masks[0] != masks[1]).sum())
    frames = args.frames - 1
    cells = [
        f"{grid[0]} × {grid[1]}",
        *(f"{1e3 * statistics.median(side) / frames:,.0f}" for side in times),
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
        f"{apart:.1e}",
        f"{other:,} of {masks[0].numel():,}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Parse the options and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--grids", default="32x32,60x107")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, cpu, 1 thread, fp32, D {args.width}; {args.frames} frames, "
        f"median (range) of {args.rounds} rounds\n\n| tokens | ours, ms a frame | DINO's, ms "
        "| ratio | labels differ by at most | other pixels in the masks |\n"
        "|---|---|---|---|---|---|"
    )
    with torch.no_grad(), mock.patch.object(Tensor, "cuda", lambda tensor, **_: tensor):
        for text in args.grids.split(","):
            height, width = map(int, text.split("x"))
            print(measure(args.script, (height, width), args), flush=True)


if __name__ == "__main__":
    main()
