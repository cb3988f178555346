"""Predicted peaks beside what torch's allocator gives out in real training steps."""

from __future__ import annotations

import gc
from dataclasses import replace
from itertools import accumulate, product

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from toto.analysis.gpu_memory import Setting, highest_moment
from toto.analysis.memory_terms import Load
from toto.backbones.config import Gpt2Config, LlamaConfig, MambaConfig
from toto.backbones.memory import Pass
from toto.data.batch import Batch
from toto.model import AutoregressiveModel
from toto.model_size import ModelSize
from toto.sequence import SequenceLayout
from toto.tasks.next_token import NextTokenTask
from toto.tokenizers.config import DvaeConfig, PatchConfig
from toto.training.config import DeepSpeedConfig, OptimizerConfig, TrainingConfig
from toto.training.distributed import Ranks
from toto.training.engine_deepspeed import DeepSpeedEngine
from toto.training.engine_local import LocalEngine

BATCH, LAYOUT = 2, SequenceLayout(1, 16, 16)
CODES = PatchConfig(patch_size=8)  # asks nothing of batches that hold codes
BACKBONES = {
    "llama": LlamaConfig(width=64, num_layers=3, num_heads=4, ffn_dim=256),
    "llama, untied": LlamaConfig(
        width=64, num_layers=3, num_heads=4, num_kv_heads=2, ffn_dim=128, tie_embeddings=False
    ),
    "deep": LlamaConfig(width=192, num_layers=10, num_heads=4, ffn_dim=512),
    "gpt2": Gpt2Config(width=64, num_layers=3, num_heads=4, ffn_dim=256),
    "mamba": MambaConfig(width=64, num_layers=3),
}
SHALLOW = [name for name in BACKBONES if name != "deep"]


def allocated(run) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = recorded.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(change for _, change in changes))


def measured(tokenizer, backbone, setting: Setting, precision: str, batches) -> int:
    torch.manual_seed(0)
    model = AutoregressiveModel(tokenizer, backbone)
    if setting.recompute:
        model.backbone.recompute_activations()
    task = NextTokenTask(model, CODES.build())
    cpu = torch.device("cpu")
    engine = LocalEngine(task, OptimizerConfig(), lambda _: 1e-4, device=cpu, precision=precision)
    engine.step(batches)
    states = 12 * sum(parameter.numel() for parameter in model.parameters())
    return states + allocated(lambda: engine.step(batches))


def batch(num_codes: int) -> Batch:
    ids = torch.arange(BATCH)
    codes = torch.randint(num_codes, (BATCH, LAYOUT.frames, LAYOUT.height, LAYOUT.width))
    return Batch(None, codes, ids.bool(), ids, ids, ids)


@pytest.mark.parametrize(
    ("name", "precision", "recompute", "num_codes", "micro_batches"),
    [
        *product(SHALLOW, ["fp32", "bf16"], [False, True], [1000], [1]),
        ("llama", "fp32", False, 60, 1),
        ("llama", "bf16", False, 60, 2),
        ("gpt2", "fp32", True, 1000, 2),
        ("deep", "fp32", True, 60, 1),
        ("deep", "bf16", True, 60, 1),
    ],
)
def test_a_step_takes_what_is_predicted(name, precision, recompute, num_codes, micro_batches):
    backbone, tokenizer = BACKBONES[name], DvaeConfig(num_codes=num_codes)
    setting = Setting(None, recompute)
    load = load_of(tokenizer, backbone, precision, micro_batches)
    batches = [batch(num_codes) for _ in range(micro_batches)]
    found = measured(tokenizer, backbone, setting, precision, batches)
    assert highest_moment(load, setting).bytes == pytest.approx(found, rel=0.05)


def load_of(tokenizer, backbone, precision: str, micro_batches: int) -> Load:
    one = Pass(BATCH, LAYOUT.length, precision, "cpu", compiled=False)
    block = backbone.block_memory(one)
    assert block is not None
    return Load(
        size=ModelSize.of(tokenizer, backbone),
        backbone=backbone,
        block=block,
        one=one,
        targets=LAYOUT.length,
        micro_batches=micro_batches,
    )


@pytest.mark.parametrize("stage", [1, 2])
def test_sharded_stages_in_bf16_keep_fp32_weights_and_the_optimizers_own(stage):
    """On one rank, where nothing is sharded, of a model whose states outweigh everything else."""
    torch.set_num_threads(1)
    backbone, tokenizer = BACKBONES["deep"], DvaeConfig(num_codes=60)
    small = DeepSpeedConfig(zero_stage=stage, bucket_elements=10_000)
    training = TrainingConfig(
        steps=1, precision="bf16", device="cpu", engine="deepspeed", deepspeed=small
    )
    ids = torch.arange(1)
    batches = [Batch(None, torch.randint(60, (1, 1, 2, 2)), ids.bool(), ids, ids, ids)]
    made = []

    def train() -> None:
        task = NextTokenTask(AutoregressiveModel(tokenizer, backbone), CODES.build())
        optimizer, ranks = OptimizerConfig(), Ranks()
        made.append(DeepSpeedEngine(task, training, optimizer, lambda _: 1e-4, ranks=ranks))
        made[0].step(batches)

    gc.collect()  # what others have left must not be let go of within
    found = allocated(train)
    made[0].close()
    load = replace(load_of(tokenizer, backbone, "bf16", micro_batches=1), deepspeed=small)
    highest = highest_moment(load, Setting(stage, recompute=True))
    assert highest.name == "step of the optimizer"
    assert highest.bytes == pytest.approx(found, rel=0.05)
