"""Full fine-tuning: classes through the whole model."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import one_hot
from toy_classes import CLASSES, toy_batch, toy_engine, toy_task

from toto.layers.masks import CAUSAL, FULL
from toto.tasks.classify import mixed_up, mixed_up_loss
from toto.tasks.config import ClassifyConfig


def config(**values) -> ClassifyConfig:
    return ClassifyConfig.model_validate({"name": "classify", **values})


@pytest.mark.parametrize("mask", [CAUSAL, FULL], ids=["causal", "full"])
@pytest.mark.parametrize("head", ["average", "attention"])
def test_it_learns(mask, head):
    task = toy_task(config(head=head, mixup=0.2, label_smoothing=0.1, drop_path=0.1), mask=mask)
    engine = toy_engine(task, layer_decay=0.9)
    for step in range(30):
        engine.step([toy_batch(step, size=12, frames=1)])
    found = engine.evaluate(toy_batch(1000, size=50, frames=1))
    assert found["accuracy"].value().item() > 0.9
    assert found["accuracy"].count.item() == 50


def test_the_whole_model_up_to_the_layer_has_gradients():
    task = toy_task(config(layer=1))
    task.train()(toy_batch(frames=1)).loss.backward()
    reached = {name for name, p in task.trainable.named_parameters() if p.grad is not None}
    assert "backbone.blocks.0.mlp.down.weight" in reached
    assert "classifier.linear.weight" in reached
    assert not any(name.startswith("backbone.blocks.1") for name in reached)
    assert task.classifiers[0].layer == 1
    assert toy_task(config()).classifiers[0].layer == 2


def test_mixed_pixels_are_those_of_a_plain_loop():
    batch = toy_batch(frames=1)
    torch.manual_seed(7)
    mixed, weight_B = mixed_up(batch, 0.4)
    assert ((weight_B >= 0) & (weight_B <= 1)).all()
    pixels = batch.pixels_BTCHW.double()
    for b, weight in enumerate(weight_B.tolist()):
        expected = weight * pixels[b] + (1 - weight) * pixels[len(pixels) - 1 - b]
        assert (mixed.pixels_BTCHW[b].double() - expected).abs().max() <= 0.501
    assert torch.equal(mixed.label_B, batch.label_B)
    torch.manual_seed(7)
    assert torch.equal(mixed_up(batch, 0.4)[1], weight_B)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_to_mixed_smooth_targets(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits_BC = torch.randn(5, CLASSES, generator=generator)
    label_B = torch.tensor([0, 2, 1, 1, 0])
    weight_B = torch.rand(5, generator=generator)
    own_BC = one_hot(label_B, CLASSES).float()
    target_BC = weight_B[:, None] * own_BC + (1 - weight_B[:, None]) * own_BC.flip(0)
    target_BC = (1 - smoothing) * target_BC + smoothing / CLASSES
    expected_B = -(target_BC * logits_BC.log_softmax(1)).sum(1)
    found_B = mixed_up_loss(logits_BC, label_B, weight_B, smoothing)
    torch.testing.assert_close(found_B, expected_B)


def test_evaluations_see_plain_pictures_and_plain_labels():
    regular = toy_task(config(mixup=0.8, label_smoothing=0.1, drop_path=0.5)).eval()
    plain = toy_task(config()).eval()
    outputs = [task(toy_batch(frames=1)) for task in (regular, plain)]
    assert outputs[0].loss.item() == outputs[1].loss.item()
    assert "accuracy" not in regular.train()(toy_batch(frames=1)).metrics
    assert "accuracy" in plain.train()(toy_batch(frames=1)).metrics
