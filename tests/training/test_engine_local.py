from __future__ import annotations

import pytest
import torch
from toy_training import ToyTask, digest, toy_batch, toy_batches, toy_engine

from toto.errors import CheckpointError, RunError
from toto.training.engine import EngineState


def test_accumulation_equals_one_big_batch():
    whole, parts = toy_engine(ToyTask(noise=0)), toy_engine(ToyTask(noise=0))
    for step in range(5):
        batch = toy_batch(step)
        first = whole.step([batch])
        second = parts.step([batch.part(slice(a, b)) for a, b in ((0, 7), (7, 9), (9, 10))])
        assert first.loss == pytest.approx(second.loss, abs=1e-6)
        assert first.grad_norm == pytest.approx(second.grad_norm, abs=1e-6)
        assert first.num_targets == second.num_targets == 10
        for name, mean in first.metrics.items():
            torch.testing.assert_close(mean.value(), second.metrics[name].value())
    for name, tensor in whole.state().model.items():
        torch.testing.assert_close(tensor, parts.state().model[name], rtol=0, atol=1e-6)


def test_the_gradient_is_clipped_by_its_whole_norm():
    task = ToyTask(noise=0)
    engine = toy_engine(task)
    clipped = []
    engine._optimizer.step = lambda: clipped.extend(p.grad.clone() for p in task.net.parameters())
    batch = toy_batch(0)
    big = type(batch)(batch.x_BC, batch.y_B + 100, batch.source_B, batch.position_B)
    result = engine.step([big])
    assert result.grad_norm > 10
    norm = torch.cat([grad.flatten() for grad in clipped]).norm()
    assert norm.item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_non_finite_step_is_not_taken_and_names_its_samples(where):
    task = ToyTask(noise=0)
    engine = toy_engine(task)
    for micro_batches in toy_batches(0, 3):
        engine.step(micro_batches)
    before = digest(engine.state())
    good, bad = next(toy_batches(3, 4))
    if where == "loss":
        bad = type(bad)(bad.x_BC, bad.y_B * torch.nan, bad.source_B, bad.position_B)
        message = r"step 3: the loss .* positions 37-39 .* sources 0-1 "
    else:
        task.net[0].weight.register_hook(lambda grad: grad * torch.inf)
        message = r"step 3: the gradient .* positions 30-39 "
    with pytest.raises(RunError, match=message):
        engine.step([good, bad])
    assert digest(engine.state()) == before
    assert engine.steps_done == 3
    assert all(p.grad is None for p in task.net.parameters())


def test_bf16_computes_in_bf16_and_keeps_fp32_weights():
    task = ToyTask(noise=0)
    seen = []
    task.net[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    engine = toy_engine(task, precision="bf16")
    engine.step([toy_batch(0)])
    state = engine.state()
    assert seen == [torch.bfloat16]
    assert {t.dtype for t in (*state.model.values(), *state.optimizer.values())} == {torch.float32}


def test_evaluation_is_without_noise_and_leaves_training_mode():
    task = ToyTask()
    engine = toy_engine(task)
    first, second = (engine.evaluate(toy_batch(0))["loss"].value() for _ in range(2))
    assert first == second
    assert task.training


def test_the_task_hears_of_every_step_and_of_the_one_it_was_restored_at():
    task = ToyTask()
    engine = toy_engine(task)
    for micro_batches in toy_batches(0, 3):
        engine.step(micro_batches)
    assert task.steps_seen == [0, 1, 2]
    other = ToyTask()
    toy_engine(other).load_state(engine.state())
    assert other.steps_seen == [2]


def test_only_the_trainable_part_is_in_the_state():
    assert set(toy_engine().state().model) == set(ToyTask().net.state_dict())


def test_a_state_of_another_model_is_refused_by_name():
    engine = toy_engine()
    engine.step([toy_batch(0)])
    state = engine.state()
    model = dict(state.model)
    model["0.weight"] = torch.zeros(3, 3)
    del model["2.bias"]
    model["extra.weight"] = torch.zeros(1)
    before = digest(state)
    with pytest.raises(CheckpointError) as error:
        engine.load_state(EngineState(1, model, state.optimizer))
    text = str(error.value)
    assert "1 missing: 2.bias" in text
    assert "1 not of this model: extra.weight" in text
    assert "1 of another shape: 0.weight is (3, 3), not (8, 4)" in text
    assert digest(engine.state()) == before

    optimizer = dict(state.optimizer)
    optimizer["0.bias.exp_avg"] = torch.zeros(9)
    del optimizer["2.bias.step"]
    with pytest.raises(CheckpointError, match=r"optimizer state(.|\n)*2\.bias\.step(.|\n)*\(9,\)"):
        engine.load_state(EngineState(1, state.model, optimizer))
