"""Pictures and clips of three brightnesses, and tasks that tell them apart."""

from __future__ import annotations

import torch
from toy_brightness import BrightnessConfig

from toto.backbones.config import LlamaConfig
from toto.data.batch import Batch
from toto.layers.masks import CAUSAL, Mask
from toto.model import AutoregressiveModel
from toto.tasks.config import Labels, ModelParts, ModelTaskConfig, NextTokenProbesConfig
from toto.tasks.next_token import ModelTask
from toto.training.config import OptimizerConfig, ScheduleConfig
from toto.training.engine_local import LocalEngine
from toto.training.schedule import WarmupCosine

LLAMA = LlamaConfig(width=16, num_layers=2, num_heads=2, ffn_dim=32)
PROBES = NextTokenProbesConfig.model_validate(
    {"name": "next_token_probes", "probes": {"sources": ["a"], "learning_rates": [1e-2, 3e-2]}}
)
PLAIN = NextTokenProbesConfig.model_validate({"name": "next_token_probes", "probes": None})
CLASSES, PIXELS = 3, 8


def toy_task(
    config: ModelTaskConfig, *, is_image: bool = True, mask: Mask = CAUSAL, labels: bool = True
) -> ModelTask:
    """Source 0 of two has labels."""
    torch.manual_seed(0)
    tokenizer = BrightnessConfig()
    model = AutoregressiveModel(tokenizer, LLAMA, None, mask)
    learned = Labels((0,), CLASSES, is_image) if labels else None
    return config.build(ModelParts(model, tokenizer.build(), None, 2, learned))


def toy_batch(
    step: int = 0, size: int = 6, frames: int = 2, *, is_image: bool = True, source: int = 0
) -> Batch:
    """The class of a picture is its brightness; a clip is of one class."""
    generator = torch.Generator().manual_seed(step)
    label_BT = torch.randint(0, CLASSES, (size, frames), generator=generator)
    if not is_image:
        label_BT = label_BT[:, :1].expand(-1, frames)
    noise = torch.randint(0, 60, (size, frames, 3, PIXELS, PIXELS), generator=generator)
    pixels = (noise + 80 * label_BT[:, :, None, None, None]).to(torch.uint8)
    position_B = torch.arange(step * size, (step + 1) * size)
    return Batch(
        pixels_BTCHW=pixels,
        codes_BTHW=None,
        is_image_B=torch.full((size,), is_image),
        source_B=torch.full((size,), source),
        position_B=position_B,
        label_B=label_BT[:, 0],
        label_BT=label_BT,
    )


def rows(batch: Batch, chosen: list[int]) -> Batch:
    """Some sequences of a batch."""
    tensors = {name: value for name, value in vars(batch).items() if torch.is_tensor(value)}
    return Batch(**{"codes_BTHW": None} | {name: value[chosen] for name, value in tensors.items()})


def toy_engine(task: ModelTask, *, steps: int = 40, **optimizer) -> LocalEngine[Batch]:
    config = OptimizerConfig(**{"lr": 1e-3} | optimizer)
    schedule = WarmupCosine(ScheduleConfig(warmup_steps=2), peak=config.lr, steps=steps)
    return LocalEngine(task, config, schedule, device=torch.device("cpu"), precision="fp32")
