"""A run directory as `toto train`, `probe` and `generate` leave it, with made-up numbers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from toto.generation.media import continuation_sheet, side_by_side, write_gif, write_png

if TYPE_CHECKING:
    from pathlib import Path

FRAMES = 4


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def train_line(step: int) -> dict[str, Any]:
    return {
        "kind": "train",
        "step": step,
        "tokens": step * 1000,
        "loss": 5.0 - step / 100,
        "lr": 1e-3,
        "grad_norm": 0.5,
        "tokens_per_s": 2000.0,
        "data_wait": 0.01,
        "seconds": step / 2,
    }


def source_loss(loss: float) -> dict[str, Any]:
    return {
        "loss": loss,
        "unigram": 5.0,
        "copy": 3.0,
        "frame_loss": [loss] * FRAMES,
        "frame_unigram": [5.0] * FRAMES,
        "frame_copy": [5.0] + [2.5] * (FRAMES - 1),
    }


def eval_line(step: int, sources: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "eval", "step": step, "tokens": step * 1000, "sources": sources}


def probe_row(layer: int, head: str, lr: float, accuracy: float) -> dict[str, Any]:
    return {
        "layer": layer,
        "head": head,
        "lr": lr,
        "accuracy": accuracy,
        "low": accuracy - 0.05,
        "high": accuracy + 0.05,
        "loss": 1.0,
        "chance": 0.1,
    }


def write_probing(folder: Path, rows: list[dict[str, Any]], **summary: Any) -> None:
    """A folder of probes, as `toto probe` leaves it but for the curve."""
    write_lines(folder / "results.jsonl", rows)
    (folder / "summary.json").write_text(json.dumps(summary))


def write_run(folder: Path, source: str = "digits") -> None:
    """Metrics, probes and one generated video; the model's last loss is 2.75."""
    evals = [eval_line(step, {source: source_loss(4.0 - step / 80)}) for step in (50, 100)]
    write_lines(folder / "metrics.jsonl", [*map(train_line, range(10, 101, 10)), *evals])
    write_probing(
        folder / "eval" / f"probe-{source}-0a1b2c3d",
        [
            probe_row(layer, head, lr, 0.2 + 0.1 * layer * (1 if head == "attention" else 0.5) - lr)
            for head in ("average", "attention")
            for layer in (0, 1, 2)
            for lr in (0.01, 0.001)
        ],
        evaluation="probe",
        step=100,
        source=source,
        train_samples=700,
        validation_samples=200,
        protocol={"name": "default"},
        conditions={"batch_norm_on": {"average": "pooled", "attention": "tokens"}},
    )
    generated = folder / "generated"
    generated.mkdir()
    video_THWC = np.random.default_rng(0).integers(0, 255, (FRAMES, 16, 16, 3), dtype=np.uint8)
    rows = {"real": video_THWC, "generated": video_THWC[::-1]}
    write_gif(generated / "0.gif", side_by_side(rows, prompt_frames=2))
    write_png(generated / "0.png", continuation_sheet(rows, prompt_frames=2))
    record = {
        "step": 100,
        "prompts": "held-out",
        "source": source,
        "start": "video",
        "frames": 2,
        "sampling": {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
        "samples": [
            {"gif": "0.gif", "sheet": "0.png", "prompt": "a.mp4", "prompt_frames": 2, "seed": 7}
        ],
    }
    (generated / "generated.json").write_text(json.dumps(record))


def write_findings(folder: Path) -> None:
    """What earlier versions left: probes, classes, losses by position, and earlier tracking."""
    rows = [probe_row(layer, "cross_attention", 0.01, 0.3) for layer in (0, 1)]
    write_probing(
        folder / "probe/mine", rows, step=100, source="letters", train_samples=64,
        validation_samples=1600,
    )  # fmt: skip
    write_probing(folder / "classify", [probe_row(2, "average", 0.01, 0.3)], step=100, source="b")
    track = {"step": 50, "text": "best at layer 1: J&F 31.0%."}
    (folder / "track").mkdir()
    (folder / "track" / "summary.json").write_text(json.dumps(track))
    (folder / "token_loss").mkdir()
    losses = {
        "step": 100,
        "data": "data/val",
        "sequences": 8,
        "unit": "nats/token",
        "mean": 2.5,
        "by_frame": {"model": [3.0, 2.0], "copy": [None, 4.0]},
    }
    (folder / "token_loss" / "token_loss.json").write_text(json.dumps(losses))
    picture_HWC = np.zeros((8, 8, 3), dtype=np.uint8)
    for name in ("track/curve.png", "token_loss/token_loss.png"):
        write_png(folder / name, picture_HWC)
