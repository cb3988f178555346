"""DeepSpeed's dictionary of a run, from the sections of a recipe. No torch here, no deepspeed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toto.training.config import OptimizerConfig, TrainingConfig

__all__ = ["clashes", "deepspeed_settings"]

# What the engine does itself. DeepSpeed would ignore these or do them as well.
DONE_BY_TOTO = (
    "bf16",
    "fp16",
    "managed_gradient_accumulation",
    "optimizer",
    "scheduler",
    "torch_autocast",
    "train_batch_size",
)


def deepspeed_settings(training: TrainingConfig, optimizer: OptimizerConfig) -> dict[str, Any]:
    """Return what `deepspeed.initialize` gets: toto's settings merged with those of `extra`.

    DeepSpeed averages gradients over the ranks, and the engine weighs its losses so that their sum
    is what is wanted; it also says where a step ends, so that there is nothing to accumulate here.

    There is no section `bf16`: DeepSpeed would make every weight bf16, the gains of norms and
    Mamba's rates of decay included, and the residual stream with them. Weights and gradients are
    fp32 at every stage, and the engine's autocast alone makes products bf16, as on one process. The
    ranks send each other fp32 gradients unless `extra` has `communication_data_type: bf16`.

    Args:
        training: the section of the recipe; its `extra` has no `clashes`, which the reader of a
            recipe refuses.
        optimizer: its `grad_clip` is DeepSpeed's where gradients are sharded.
    """
    return _merged(_own_settings(training, optimizer), training.deepspeed.extra)


def clashes(training: TrainingConfig, optimizer: OptimizerConfig) -> list[str]:
    """Dotted keys of `training.deepspeed.extra` that toto sets, or does what they are for."""
    extra = training.deepspeed.extra
    done = [key for key in extra if key in DONE_BY_TOTO]
    return done + _shared_keys(_own_settings(training, optimizer), extra)


def _own_settings(training: TrainingConfig, optimizer: OptimizerConfig) -> dict[str, Any]:
    config = training.deepspeed
    stage = config.zero_stage
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": config.overlap_comm,
        "reduce_bucket_size": config.bucket_elements,
    }
    if stage < 3:
        zero["allgather_bucket_size"] = config.bucket_elements
    else:
        zero["stage3_prefetch_bucket_size"] = config.prefetch_elements
        zero["stage3_param_persistence_threshold"] = config.persistent_elements
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.grad_clip if stage else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "gradient_allreduce_op": "mean",
        "steps_per_print": None,
    }
    return settings | ({"data_types": {"grad_accum_dtype": "fp32"}} if stage else {})


def _merged(ours: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    both = {key: _merged(ours[key], extra[key]) for key in _sections(ours, extra)}
    return extra | ours | both


def _shared_keys(ours: dict[str, Any], extra: dict[str, Any]) -> list[str]:
    sections = _sections(ours, extra)
    inside = [
        f"{section}.{key}"
        for section in sections
        for key in _shared_keys(ours[section], extra[section])
    ]
    return [key for key in extra if key in ours and key not in sections] + inside


def _sections(ours: dict[str, Any], extra: dict[str, Any]) -> list[str]:
    """What is a section of its own in both."""
    return [
        key for key in extra if isinstance(ours.get(key), dict) and isinstance(extra[key], dict)
    ]
