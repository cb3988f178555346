from __future__ import annotations

import pytest

from toto.training.config import DeepSpeedConfig, OptimizerConfig, TrainingConfig
from toto.training.deepspeed_settings import clashes, deepspeed_settings


def settings(precision: str = "fp32", **deepspeed) -> dict:
    config = DeepSpeedConfig(**deepspeed)
    training = TrainingConfig(steps=1, micro_batch=3, precision=precision, deepspeed=config)
    return deepspeed_settings(training, OptimizerConfig(grad_clip=0.5))


def test_deepspeed_clips_and_sums_in_fp32_where_it_parts_the_gradients():
    assert settings(zero_stage=0)["gradient_clipping"] == 0.0  # the engine does it
    assert "data_types" not in settings(zero_stage=0)
    for stage in (1, 2, 3):
        found = settings(zero_stage=stage)
        assert found["gradient_clipping"] == 0.5
        assert found["data_types"] == {"grad_accum_dtype": "fp32"}
        assert found["zero_optimization"]["stage"] == stage


@pytest.mark.parametrize("stage", range(4))
def test_the_precision_is_autocasts_and_no_setting_of_deepspeed(stage):
    assert settings("bf16", zero_stage=stage) == settings("fp32", zero_stage=stage)


def test_sizes_and_offloading_reach_their_keys():
    found = settings(
        zero_stage=3,
        overlap_comm=False,
        bucket_elements=7,
        prefetch_elements=8,
        persistent_elements=9,
        offload_optimizer=True,
    )
    assert found["train_micro_batch_size_per_gpu"] == 3
    assert found["zero_optimization"] == {
        "stage": 3,
        "overlap_comm": False,
        "reduce_bucket_size": 7,
        "stage3_prefetch_bucket_size": 8,
        "stage3_param_persistence_threshold": 9,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
    }


def test_extra_adds_at_any_depth_and_replaces_nothing():
    extra = {"zero_optimization": {"round_robin_gradients": True}, "wall_clock_breakdown": True}
    found = settings(zero_stage=2, extra=extra)
    assert found["zero_optimization"]["round_robin_gradients"]
    assert found["zero_optimization"]["stage"] == 2
    assert found["wall_clock_breakdown"]
    clashing = {"zero_optimization": {"stage": 3, "round_robin_gradients": True}, "bf16": 1}
    training = TrainingConfig(steps=1, deepspeed=DeepSpeedConfig(extra=clashing))
    assert clashes(training, OptimizerConfig()) == ["bf16", "zero_optimization.stage"]
    training = TrainingConfig(steps=1, deepspeed=DeepSpeedConfig(extra=extra))
    assert clashes(training, OptimizerConfig()) == []


@pytest.mark.parametrize(
    ("extra", "key"),
    [
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler"),
        ({"optimizer": {"type": "SGD"}}, "optimizer"),
        ({"fp16": {"enabled": True}}, "fp16"),
        ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op"),
        ({"bf16": {"enabled": True}}, "bf16"),
    ],
)
def test_what_deepspeed_would_ignore_or_do_besides_clashes(extra, key):
    training = TrainingConfig(steps=1, deepspeed=DeepSpeedConfig(extra=extra))
    assert clashes(training, OptimizerConfig()) == [key]
