"""Whole training runs on the tiny datasets of conftest.py: their recipe, and what they record."""

from __future__ import annotations

from pathlib import Path

# What a line of metrics.jsonl says of the machine rather than of the model.
TIMES = ("seconds", "tokens_per_s", "data_wait", "utilisation", "memory", "save_seconds")


def tiny_recipe(data_root: Path, **training) -> dict:
    """It trains for seconds; `training` replaces what it says of the training."""
    return {
        "verb": "train",
        "seed": 3,
        "tokenizer": {
            "name": "dvae",
            "weights": "random:0",
            "num_codes": 32,
            "width": 8,
            "blocks_per_group": 1,
            "decoder_stem": 8,
        },
        "backbone": {"name": "llama", "preset": "tiny", "num_layers": 1},
        "clip": {"frames": 4, "stride": 2, "resolution": 32},
        "data": {
            "root": str(data_root),
            "sources": {
                "videos": {"path": "videos-train", "validation": "videos-val", "weight": 3},
                "pictures": {"path": "pictures", "weight": 1},
            },
        },
        "schedule": {"warmup_steps": 1},
        "training": {
            "steps": 8,
            "batch_tokens": 4 * 4 * 16,
            "micro_batch": 2,
            "precision": "fp32",
            "compile": False,
            "log_every": 1,
            "eval_every": 4,
            "eval_sequences": 4,
            "save_every": 3,
        }
        | training,
    }
