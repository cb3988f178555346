"""Twenty-step losses, pinned: a change that should not alter numbers must keep them.

To pin new ones after a change that should: `python tests/golden/test_golden_losses.py`, and say why
in CHANGELOG.md under "Numerics".
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from toto.backbones.config import BACKBONES
from toto.data.batch import Batch
from toto.model import AutoregressiveModel
from toto.tasks.next_token import NextTokenTask
from toto.tokenizers.config import TOKENIZERS
from toto.training.config import OptimizerConfig, ScheduleConfig
from toto.training.engine_local import LocalEngine
from toto.training.schedule import WarmupCosine

PINNED = Path(__file__).with_name("losses.json")
STEPS = 20
TOKENIZER_CONFIGS = {
    "dvae": {
        "name": "dvae",
        "weights": "random:0",
        "num_codes": 64,
        "width": 8,
        "blocks_per_group": 1,
        "decoder_stem": 8,
    },
    "patch": {"name": "patch", "patch_size": 8},
    "patch_dvae": {"name": "patch", "patch_size": 16},
    # As runs from before `input_norm`: these losses have not changed since then.
    "older_patch": {"name": "patch", "patch_size": 8, "input_norm": "patch"},
    "older_patch_dvae": {"name": "patch", "patch_size": 16, "input_norm": "patch"},
}
# Of 2 × 2 patches, so that the dVAE sees 16 px.
TARGETS = {"patch_dvae": "dvae", "older_patch_dvae": "dvae"}
BACKBONE_CONFIGS = {name: {"name": name, "preset": "tiny"} for name in ("gpt2", "llama", "mamba")}
CASES = [f"{t}-{b}" for t in TOKENIZER_CONFIGS for b in BACKBONE_CONFIGS]


def batch_of(step: int) -> Batch:
    """Two videos of four frames: a square that moves over noise."""
    rng = np.random.Generator(np.random.Philox(key=step))
    frames = rng.integers(0, 256, (2, 1, 3, 32, 32), dtype=np.uint8).repeat(4, axis=1)
    for t in range(4):
        frames[:, t, :, 8:20, 4 + 4 * t : 16 + 4 * t] = 255
    return Batch(
        pixels_BTCHW=torch.from_numpy(frames),
        codes_BTHW=None,
        is_image_B=torch.tensor([False, True]),
        source_B=torch.zeros(2, dtype=torch.int64),
        position_B=torch.tensor([2 * step, 2 * step + 1]),
        label_B=torch.full((2,), -1),
    )


def losses_of(case: str) -> list[float]:
    tokenizer_name, backbone_name = case.split("-")
    tokenizer = TOKENIZERS.parse(TOKENIZER_CONFIGS[tokenizer_name])
    backbone = BACKBONES.parse(BACKBONE_CONFIGS[backbone_name])
    target = None
    if tokenizer_name in TARGETS:
        target = TOKENIZERS.parse(TOKENIZER_CONFIGS[TARGETS[tokenizer_name]])
    torch.manual_seed(0)
    model = AutoregressiveModel(tokenizer, backbone, target)
    engine = LocalEngine(
        NextTokenTask(model, tokenizer.build(), target and target.build()),
        OptimizerConfig(lr=1e-3),
        WarmupCosine(ScheduleConfig(warmup_steps=4), peak=1e-3, steps=STEPS),
        device=torch.device("cpu"),
        precision="fp32",
    )
    return [engine.step([batch_of(step)]).loss for step in range(STEPS)]


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_pinned(case):
    assert losses_of(case) == pytest.approx(json.loads(PINNED.read_text())[case], rel=1e-5)


if __name__ == "__main__":
    PINNED.write_text(json.dumps({case: losses_of(case) for case in CASES}, indent=1) + "\n")
