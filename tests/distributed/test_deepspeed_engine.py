"""What DeepSpeedEngine does besides giving the right losses, at every stage on two ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rank_processes import on_ranks, same_on_all
from toy_pretraining import (
    SEQUENCES,
    dealt,
    global_batch,
    take_steps,
    toy_engine,
    toy_settings,
    toy_task,
)

from toto.errors import CheckpointError, RunError, UserError
from toto.tasks.config import DvaeTaskConfig
from toto.tasks.dvae import DvaeTask
from toto.tasks.vqgan import DeadCodes
from toto.tokenizers.codebook import Codebook
from toto.tokenizers.config import DvaeConfig
from toto.training.distributed import Ranks
from toto.training.engine import EngineState
from toto.training.engine_deepspeed import DeepSpeedEngine

pytestmark = pytest.mark.distributed


def whole_state(engine, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Every tensor of all ranks' shares, copied."""
    state = engine.state()
    parts = ranks.gather((state.model, state.optimizer))
    return {
        name: tensor.clone()
        for model, optimizer in parts
        for name, tensor in (model | optimizer).items()
    }


def stops_before_the_step(ranks: Ranks, stage: int, where: str) -> str:
    """Two good steps, then a bad one: on all ranks an error, and the state of before."""
    task = toy_task()
    engine = toy_engine(ranks, stage, task=task)
    take_steps(engine, ranks, 0, 2)
    before = whole_state(engine, ranks)
    poisoned = [False]
    losses = task.model.losses

    def bad_losses(frames, is_image_B, targets):
        """Infinite on the second rank's first micro-batch, or with a gradient that is."""
        losses_BL = losses(frames, is_image_B, targets)
        if poisoned[0] and where == "loss":
            losses_BL = losses_BL * torch.nan
        if poisoned[0] and where == "gradient":
            losses_BL.register_hook(lambda grad: grad * torch.inf)
        poisoned[0] = False
        return losses_BL

    task.model.losses = bad_losses
    poisoned[0] = ranks.rank == 1
    try:
        engine.step(dealt(2, ranks))
    except RunError as error:
        message = str(error)
    assert engine.steps_done == 2
    after = whole_state(engine, ranks)
    assert before.keys() == after.keys()
    different = [name for name in before if not torch.equal(before[name], after[name])]
    assert not different, different
    engine.close()
    return message


def evaluates(ranks: Ranks, stage: int) -> tuple[dict[str, float], bool]:
    """Its metrics on a batch, and whether padding has any."""
    task = toy_task()
    engine = toy_engine(ranks, stage, task=task)
    take_steps(engine, ranks, 0, 1)
    metrics = engine.evaluate(global_batch(99))
    padding = engine.evaluate(replace(global_batch(99), padding=True))
    assert task.training
    assert not task.tokenizer.training
    take_steps(engine, ranks, 1, 2)  # it goes on
    engine.close()
    return {name: mean.value().tolist() for name, mean in metrics.items()}, bool(padding)


def keeps_what_it_does_not_train(ranks: Ranks, stage: int) -> None:
    """In bf16: the tokenizer and the buffers stay as they are, and the state is fp32."""
    task = toy_task()
    buffers = {name: buffer.clone() for name, buffer in task.named_buffers()}
    engine = toy_engine(ranks, stage, precision="bf16", task=task)
    take_steps(engine, ranks, 0, 2)
    assert task.tokenizer.pool.weight.shape == (1, 3, 4, 4)
    assert {p.dtype for p in task.tokenizer.parameters()} == {torch.float32}
    for name, buffer in task.named_buffers():
        assert buffer.dtype == buffers[name].dtype, name
        assert torch.equal(buffer, buffers[name]), name
    dtypes = {tensor.dtype for tensor in whole_state(engine, ranks).values()}
    assert dtypes == {torch.float32}
    engine.close()


def refuses_another_model(ranks: Ranks, stage: int) -> str:
    engine = toy_engine(ranks, stage)
    state = whole_state(engine, ranks)
    moments = ("exp_avg", "exp_avg_sq", "step")
    model = {name: t for name, t in state.items() if not name.endswith(moments)}
    name = next(iter(model))
    model[name] = torch.zeros(2, 2)
    try:
        engine.load_state(EngineState(1, model, {}))
    except CheckpointError as error:
        return str(error)
    finally:
        engine.close()
    return "loaded"


def all_cases(ranks: Ranks, stages: tuple[int, ...]) -> list[dict[str, object]]:
    found = []
    for stage in stages:
        keeps_what_it_does_not_train(ranks, stage)
        found.append(
            {
                "loss": stops_before_the_step(ranks, stage, "loss"),
                "gradient": stops_before_the_step(ranks, stage, "gradient"),
                "evaluation": evaluates(ranks, stage),
                "refused": refuses_another_model(ranks, stage),
            }
        )
    return found


@pytest.mark.parametrize("stages", [(0, 1), (2, 3)])
def test_every_stage_stops_evaluates_and_refuses_as_the_local_engine_does(stages):
    engine = toy_engine(Ranks(), "local")
    take_steps(engine, Ranks(), 0, 1)
    expected = engine.evaluate(global_batch(99))
    for found in same_on_all(on_ranks(2, all_cases, stages)):
        # 3 sequences fall to rank 0, 4 to rank 1, whose first micro-batch of 2 is bad.
        first = 2 * SEQUENCES + 3
        assert (
            f"step 2: the loss is not finite on rank 1. Samples: positions {first}-{first + 1} "
            in found["loss"]
        )
        step = f"positions {2 * SEQUENCES}-{3 * SEQUENCES - 1} of the stream, sources 0-2 "
        assert "step 2: the gradient is not finite" in found["gradient"]
        assert step in found["gradient"]
        metrics, padded = found["evaluation"]
        assert metrics["loss"] == pytest.approx(expected["loss"].value().item(), rel=1e-5)
        assert not padded
        assert "1 of another shape" in found["refused"]


def dead_codes(ranks: Ranks) -> tuple[list, list]:
    """Each rank uses other codes; codes that none uses restart at vectors of the first rank."""
    codebook, dead = Codebook(6, 2), DeadCodes(6, after=2, ranks=ranks)
    with torch.no_grad():
        codebook.embedding.weight.copy_(torch.arange(12.0).view(6, 2))
    torch.manual_seed(ranks.rank)
    for _ in range(2):
        dead.count_(torch.tensor([[[ranks.rank]]]))
    assert dead.idle_V.tolist() == [0, 0, 2, 2, 2, 2]
    z_BCHW = torch.full((1, 2, 1, 3 + ranks.rank), 100.0 * (ranks.rank + 1))
    dead.restart_(codebook, z_BCHW)
    return codebook.embedding.weight.tolist(), dead.idle_V.tolist()


def test_codes_are_dead_where_no_rank_uses_them_and_restart_alike_on_all():
    weights, idle = same_on_all(on_ranks(2, dead_codes))
    assert weights[:2] == [[0.0, 1.0], [2.0, 3.0]]
    assert weights.count([100.0, 100.0]) == 3
    assert sorted(idle) == [0, 0, 0, 0, 0, 2]


def test_one_process_that_no_launcher_started_runs_deepspeed_too():
    """Twice, because the first must leave nothing behind."""
    torch.set_num_threads(1)
    expected = take_steps(toy_engine(Ranks(), "local"), Ranks(), 0, 3)
    for stage in (1, 3):
        engine = toy_engine(Ranks(), stage)
        found = take_steps(engine, Ranks(), 0, 3)
        engine.close()
        assert not torch.distributed.is_initialized()
        assert [r.loss for r in found] == pytest.approx([r.loss for r in expected], rel=1e-6)
        assert [r.num_targets for r in found] == [r.num_targets for r in expected]


def test_an_optimizer_in_the_memory_of_the_cpu_takes_the_same_steps():
    torch.set_num_threads(1)
    found = []
    for offload in (False, True):
        training, optimizer = toy_settings(2)
        deepspeed = training.deepspeed.model_copy(update={"offload_optimizer": offload})
        training = training.model_copy(update={"deepspeed": deepspeed})
        engine = DeepSpeedEngine(toy_task(), training, optimizer, lambda step: 1e-3, ranks=Ranks())
        found.append([result.loss for result in take_steps(engine, Ranks(), 0, 3)])
        engine.close()
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def reached_by_one_rank(ranks: Ranks) -> tuple[bool, list[float]]:
    """Whether a parameter that only the second rank's loss depends on moved, and where to."""
    task = toy_task()
    engine = toy_engine(ranks, 0, task=task)
    norm = next(p for p in task.model.parameters() if p.ndim == 1)
    before, losses = norm.detach().clone(), task.model.losses

    def without_norm(*arguments):
        norm.requires_grad_(ranks.rank == 1)
        losses_BL = losses(*arguments)
        norm.requires_grad_(True)
        return losses_BL

    task.model.losses = without_norm
    take_steps(engine, ranks, 0, 2)
    after = norm.detach().clone()
    engine.close()
    return not torch.equal(before, after), after.tolist()


def test_weights_stay_the_same_on_all_ranks_where_a_parameter_is_used_on_one():
    moved, _ = same_on_all(on_ranks(2, reached_by_one_rank))
    assert moved


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {"wall_clock_breakdwn": True, "nonsense": 1},
            r"has no setting nonsense, wall_clock_breakdwn \(did you mean wall_clock_breakdown\?\)",
        ),
        ({"elasticity": {"enabled": True}}, r"DeepSpeed refuses its settings: Elastic training"),
    ],
)
def test_settings_that_deepspeed_does_not_look_at_or_has_no_more_are_refused(extra, message):
    training, optimizer = toy_settings(1, extra=extra)
    with pytest.raises(UserError, match=message):
        DeepSpeedEngine(toy_task(), training, optimizer, lambda step: 1e-3, ranks=Ranks())
    assert not torch.distributed.is_initialized()


def test_settings_that_deepspeed_looks_at_are_let_through():
    extra = {
        "wall_clock_breakdown": False,
        "zero_optimization": {"round_robin_gradients": True},
        "activation_checkpointing": {"profile": False},
        "comms_logger": {"enabled": False},
        "flops_profiler": {"enabled": False},
        "aio": {"thread_count": 1},
        "communication_data_type": "fp32",
    }
    training, optimizer = toy_settings(1, extra=extra)
    DeepSpeedEngine(toy_task(), training, optimizer, lambda step: 1e-3, ranks=Ranks()).close()


def test_weights_with_channels_last_keep_their_order_and_values():
    """1 × 1 kernels among them: torch calls them contiguous in either order."""
    torch.set_num_threads(1)
    tiny = DvaeConfig(weights="random:0", width=8, num_codes=32, blocks_per_group=1, decoder_stem=8)
    training, optimizer = toy_settings(0)
    task = DvaeTask(tiny.build(), DvaeTaskConfig())
    before = {name: tensor.clone() for name, tensor in task.trainable.state_dict().items()}
    strides = {name: tensor.stride() for name, tensor in task.trainable.state_dict().items()}
    assert any(tensor.ndim == 4 and tensor.stride(-1) != 1 for tensor in before.values())
    engine = DeepSpeedEngine(task, training, optimizer, lambda step: 1e-3, ranks=Ranks())
    after = task.trainable.state_dict()
    engine.close()
    assert {name: tensor.stride() for name, tensor in after.items()} == strides
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_what_deepspeed_does_not_know_it_refuses_and_a_task_may_need_whole_weights():
    training, optimizer = toy_settings(1, extra={"zero_optimization": {"stagee": 2}})
    with pytest.raises(UserError, match=r"training\.deepspeed: DeepSpeed refuses(.|\n)*stagee"):
        DeepSpeedEngine(toy_task(), training, optimizer, lambda step: 1e-3, ranks=Ranks())
    assert not torch.distributed.is_initialized()

    class Whole(type(toy_task())):
        can_be_parted = False

    task = toy_task()
    task.__class__ = Whole
    training, optimizer = toy_settings(1)
    with pytest.raises(UserError, match=r"zero_stage: 1 parts .* Whole needs .* Write 0"):
        DeepSpeedEngine(task, training, optimizer, lambda step: 1e-3, ranks=Ranks())
