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

from toto.backbones.config import BACKBONES, BackboneConfig, MaskConfig
from toto.data.batch import Batch
from toto.layers.masks import CAUSAL, Mask
from toto.model import AutoregressiveModel
from toto.sequence import SequenceLayout
from toto.tasks.config import TASKS
from toto.tasks.next_token import NextTokenTask
from toto.tokenizers.config import TOKENIZERS, TokenizerConfig
from toto.training.config import OptimizerConfig, ScheduleConfig
from toto.training.engine_local import LocalEngine
from toto.training.schedule import WarmupCosine
from toto.training.task import Task

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
# By name: what differs from dVAE codes under LLaMA or another backbone.
MASKS = {
    "prefix": {"name": "prefix", "frames": 2},
    "per_image": {"name": "per_image"},
    "full": {"name": "full"},
}
MASK_CASES = [f"{mask}-{b}" for mask in MASKS for b in ("gpt2", "llama")]
MUP_CASES = [f"mup-{b}" for b in BACKBONE_CONFIGS]
VQGAN = {
    "name": "vqgan",
    "num_codes": 64,
    "code_dim": 8,
    "latent_dim": 8,
    "width": 8,
    "width_multipliers": [1, 2, 2, 2],
    "blocks_per_level": 1,
    "attention_levels": [3],
    "norm_groups": 4,
}
TOKENIZER_CASES = {
    "train_dvae": (TOKENIZER_CONFIGS["dvae"] | {"weights": None}, {"name": "dvae"}),
    # The discriminator begins at step 8; a code that is idle for four micro-batches is replaced.
    "train_vqgan": (
        VQGAN,
        {
            "name": "vqgan",
            "discriminator_start": 8,
            "discriminator_width": 4,
            "discriminator_layers": 1,
            "restart_after": 4,
        },
    ),
}


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
    target = None
    if tokenizer_name in TARGETS:
        target = TOKENIZERS.parse(TOKENIZER_CONFIGS[TARGETS[tokenizer_name]])
    tokenizer = TOKENIZERS.parse(TOKENIZER_CONFIGS[tokenizer_name])
    return model_losses(tokenizer, BACKBONES.parse(BACKBONE_CONFIGS[backbone_name]), target)


def mask_losses_of(case: str) -> list[float]:
    mask_name, backbone_name = case.split("-")
    mask = MaskConfig.model_validate(MASKS[mask_name]).build(SequenceLayout(4, 4, 4))
    tokenizer = TOKENIZERS.parse(TOKENIZER_CONFIGS["dvae"])
    return model_losses(tokenizer, BACKBONES.parse(BACKBONE_CONFIGS[backbone_name]), mask=mask)


def mup_losses_of(case: str) -> list[float]:
    backbone = BACKBONES.parse(BACKBONE_CONFIGS[case.removeprefix("mup-")])
    under_mup = backbone.model_copy(update={"mup_base_width": backbone.width // 4})
    return model_losses(TOKENIZERS.parse(TOKENIZER_CONFIGS["dvae"]), under_mup)


def model_losses(
    tokenizer: TokenizerConfig,
    backbone: BackboneConfig,
    target: TokenizerConfig | None = None,
    mask: Mask = CAUSAL,
) -> list[float]:
    torch.manual_seed(0)
    model = AutoregressiveModel(tokenizer, backbone, target, mask)
    return trained(NextTokenTask(model, tokenizer.build(), target and target.build()))


def tokenizer_losses_of(case: str) -> list[float]:
    tokenizer, task = TOKENIZER_CASES[case]
    torch.manual_seed(0)
    return trained(TASKS.parse(task).build(TOKENIZERS.parse(tokenizer).build()))


def trained(task: Task[Batch]) -> list[float]:
    engine = LocalEngine(
        task,
        OptimizerConfig(lr=1e-3),
        WarmupCosine(ScheduleConfig(warmup_steps=4), peak=1e-3, steps=STEPS),
        device=torch.device("cpu"),
        precision="fp32",
    )
    return [engine.step([batch_of(step)]).loss for step in range(STEPS)]


ALL = (
    dict.fromkeys(CASES, losses_of)
    | dict.fromkeys(MASK_CASES, mask_losses_of)
    | dict.fromkeys(MUP_CASES, mup_losses_of)
    | dict.fromkeys(TOKENIZER_CASES, tokenizer_losses_of)
)


@pytest.mark.parametrize("case", ALL)
def test_losses_are_those_pinned(case):
    assert ALL[case](case) == pytest.approx(json.loads(PINNED.read_text())[case], rel=1e-5)


def test_each_mask_is_another_model():
    pinned = json.loads(PINNED.read_text())
    for backbone in ("gpt2", "llama"):
        names = ["dvae", *MASKS]
        assert len({tuple(pinned[f"{name}-{backbone}"]) for name in names}) == len(names)


if __name__ == "__main__":
    PINNED.write_text(json.dumps({case: ALL[case](case) for case in ALL}, indent=1) + "\n")
