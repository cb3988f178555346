"""DeepSpeed's dictionary of a run, from the sections of a recipe. No torch here, no deepspeed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from toto.errors import UserError

if TYPE_CHECKING:
    from toto.training.config import OptimizerConfig, TrainingConfig

__all__ = ["deepspeed_settings"]


def deepspeed_settings(training: TrainingConfig, optimizer: OptimizerConfig) -> dict[str, Any]:
    """What `deepspeed.initialize` gets.

    DeepSpeed averages gradients over the ranks, and the engine weighs its losses so that their sum
    is what is wanted; it also says where a step ends, so that there is nothing to accumulate here.
    Precision bf16 with parted weights means bf16 weights, fp32 ones in the optimizer and fp32
    sums of gradients. At stage 0 the weights are fp32, and autocast alone makes it bf16.

    Args:
        training: with precision `auto`, bf16 stays `auto`: for people to read, not for DeepSpeed.
        optimizer: whose clipping DeepSpeed does where it parts the gradients.

    Raises:
        UserError: `training.deepspeed.extra` sets what is set here already.
    """
    config = training.deepspeed
    stage = config.zero_stage
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.grad_clip if stage else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": config.overlap_comm,
            "reduce_bucket_size": config.bucket_elements,
        },
        "bf16": {"enabled": _bf16_weights(training)},
        "steps_per_print": None,
    }
    if stage:
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    if stage < 3:
        settings["zero_optimization"]["allgather_bucket_size"] = config.bucket_elements
    else:
        settings["zero_optimization"] |= {
            "stage3_prefetch_bucket_size": config.prefetch_elements,
            "stage3_param_persistence_threshold": config.persistent_elements,
        }
    if config.offload_optimizer:
        settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return _merged(settings, config.extra, "training.deepspeed.extra")


def _bf16_weights(training: TrainingConfig) -> bool | Literal["auto"]:
    if training.deepspeed.zero_stage == 0:
        return False
    return "auto" if training.precision == "auto" else training.precision == "bf16"


def _merged(ours: dict[str, Any], extra: dict[str, Any], path: str) -> dict[str, Any]:
    merged = dict(ours)
    for key, value in extra.items():
        here = f"{path}.{key}"
        if key not in ours:
            merged[key] = value
        elif isinstance(ours[key], dict) and isinstance(value, dict):
            merged[key] = _merged(ours[key], value, here)
        else:
            raise UserError(
                f"{here}: toto sets {key} to {ours[key]!r} itself. Leave it out; what can be "
                "chosen stands in training.deepspeed, training.micro_batch and optimizer.grad_clip"
            )
    return merged
