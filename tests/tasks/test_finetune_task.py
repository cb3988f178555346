"""Next tokens with probes behind a stop-gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy
from toy_classes import CLASSES, LLAMA, PLAIN, PROBES, rows, toy_batch, toy_engine, toy_task

from toto.tasks.finetune import token_norm
from toto.tasks.next_token import NextTokenTask
from toto.training.config import OptimizerConfig
from toto.training.task import sum_metrics


def gradients(task, batch):
    task.train()(batch).loss.backward()
    return {name: p.grad for name, p in task.trainable.named_parameters() if p.grad is not None}


def test_without_labels_the_task_is_that_of_next_tokens():
    assert type(toy_task(PLAIN, labels=False)) is NextTokenTask


def test_probes_leave_the_gradients_of_the_model_bitwise_alone():
    alone, beside = (gradients(toy_task(config), toy_batch()) for config in (PLAIN, PROBES))
    assert beside.keys() > alone.keys()
    assert all(name.startswith("probes.") for name in beside.keys() - alone.keys())
    for name, grad in alone.items():
        assert torch.equal(grad, beside[name]), name


def test_a_training_with_probes_trains_the_same_model():
    # Clipping would tell: here every step is clipped, and probes have large gradients.
    states, norms = [], []
    for config in (PLAIN, PROBES):
        engine = toy_engine(toy_task(config), grad_clip=0.01, layer_decay=0.9)
        norms.append([engine.step([toy_batch(step)]).grad_norm for step in range(3)])
        states.append(engine.state().model)
    assert norms[0] == norms[1]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_every_probe_learns():
    task = toy_task(PROBES)
    engine = toy_engine(task)
    for step in range(40):
        engine.step([toy_batch(step)])
    found = engine.evaluate(toy_batch(1000, size=30))
    accuracy_P = found["accuracy"].value()
    assert len(accuracy_P) == len(task.classifiers) == 3 * 2 * 2
    assert found["accuracy"].count.tolist() == [60] * 12  # 30 sequences of 2 pictures
    assert accuracy_P.min() > 0.9
    assert {probe.layer for probe in task.classifiers} == {0, 1, 2}
    assert {probe.lr for probe in task.classifiers} == {1e-2, 3e-2}


def test_the_probes_loss_is_that_of_a_plain_classifier():
    task = toy_task(PROBES)
    batch = toy_batch()
    probed = task(batch).loss - toy_task(PLAIN)(batch).loss
    frames, _ = task.tokens(batch)
    features = task.model.features(frames, batch.is_image_B, [0, 1, 2])
    expected = 0.0
    for probe in task.bank.members():
        x_BTLD = token_norm(features[probe.layer]).unflatten(1, (2, -1))
        logits_SC = probe.classifier(probe.head(x_BTLD.flatten(0, 1)))
        expected += cross_entropy(logits_SC, batch.label_BT.flatten()).item()
    assert probed.item() == pytest.approx(expected, rel=1e-5)


def test_a_clip_has_one_class_over_all_its_frames():
    task = toy_task(PROBES, is_image=False)
    batch = toy_batch(is_image=False)
    metrics = task.eval()(batch).metrics
    assert metrics["accuracy"].count.tolist() == [6] * 12


def test_what_has_no_label_counts_for_the_next_token_alone():
    task = toy_task(PROBES)
    labelled, other = toy_batch(), toy_batch(1, source=1)
    none = replace(labelled, label_BT=torch.full_like(labelled.label_BT, -1))
    for batch in (other, none):
        output = task(batch)
        assert "accuracy" not in output.metrics
        assert output.loss.item() == toy_task(PLAIN)(batch).loss.item()
        grads = gradients(toy_task(PROBES), batch)
        assert not any(name.startswith("probes.") for name in grads)
    some = labelled.label_BT.clone()
    some[:3] = -1
    counts = task(replace(labelled, label_BT=some)).metrics["accuracy"].count
    assert counts.tolist() == [6] * 12


def test_a_step_is_the_same_however_it_is_dealt():
    batch = replace(toy_batch(), source_B=torch.tensor([0, 1, 0, 0, 1, 0]))
    dealt = [rows(batch, part) for part in ([0, 2, 3, 1], [4], [5])]
    results = []
    for micro_batches in ([batch], dealt):
        task = toy_task(PROBES)
        engine = toy_engine(task)
        result = engine.step(micro_batches)
        results.append((result.loss, result.grad_norm, engine.state().model))
    assert results[0][:2] == pytest.approx(results[1][:2], rel=1e-5)
    for name, tensor in results[0][2].items():
        torch.testing.assert_close(tensor, results[1][2][name], atol=2e-4, rtol=1e-3)
    metrics = sum_metrics(task.eval()(part).metrics for part in dealt)
    assert metrics["accuracy"].count.tolist() == [8] * 12


def test_rates_fall_by_layer_and_probes_keep_theirs():
    task = toy_task(PROBES)
    scales = task.lr_scales(OptimizerConfig(lr=1e-3, layer_decay=0.5))
    assert scales.keys() == dict(task.trainable.named_parameters()).keys()
    assert scales["interface.embedding.weight"] == 0.5**3
    assert scales["backbone.blocks.0.mlp.down.weight"] == 0.5**2
    assert scales["backbone.blocks.1.attention_norm.weight"] == 0.5
    assert scales["backbone.norm.weight"] == 1.0
    rates = {round(scale, 6) for name, scale in scales.items() if name.startswith("probes.")}
    assert rates == {10.0, 30.0}
    assert toy_task(PLAIN).lr_scales(OptimizerConfig()) == {}


def test_the_optimizer_takes_those_rates():
    task = toy_task(PROBES)
    engine = toy_engine(task, lr=1e-3, layer_decay=0.5, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in task.trainable.named_parameters()}
    engine.step([toy_batch()])
    # The first AdamW step moves every weight that has a gradient by its rate; warm-up takes half.
    for name, rate in (
        ("backbone.blocks.0.mlp.down.weight", 0.25e-3),
        ("backbone.norm.weight", 1e-3),
        ("probes.probes.0.classifier.weight", 1e-2),
    ):
        moved = (dict(task.trainable.named_parameters())[name] - before[name]).abs().max()
        assert moved.item() == pytest.approx(rate / 2, rel=0.05), name


def test_resumed_steps_repeat_bit_for_bit():
    engine = toy_engine(toy_task(PROBES))
    for step in range(3):
        engine.step([toy_batch(step)])
    saved = engine.state()
    saved = replace(
        saved,
        model={name: t.clone() for name, t in saved.model.items()},
        optimizer={name: t.clone() for name, t in saved.optimizer.items()},
    )
    expected = engine.step([toy_batch(3)])
    again = toy_engine(toy_task(PROBES))
    again.load_state(saved)
    result = again.step([toy_batch(3)])
    assert (result.loss, result.grad_norm) == (expected.loss, expected.grad_norm)
    for name, tensor in engine.state().model.items():
        assert torch.equal(tensor, again.state().model[name]), name


def test_probes_stand_at_every_layer_of_a_model_without_memory():
    with torch.device("meta"):
        task = toy_task(PROBES)
    assert {probe.layer for probe in task.classifiers} == set(range(LLAMA.num_layers + 1))
    assert task.bank.members()[0].classifier.weight.shape == (CLASSES, LLAMA.width)
    assert not task.can_be_parted


def test_labels_count_where_a_prefix_leaves_nothing_to_predict(monkeypatch):
    task = toy_task(PROBES)
    monkeypatch.setattr(task, "num_targets", lambda batch: 0)
    engine = toy_engine(task)
    assert engine.evaluate(toy_batch())["accuracy"].count.max() > 0
    assert engine.evaluate(replace(toy_batch(), padding=True)) == {}
