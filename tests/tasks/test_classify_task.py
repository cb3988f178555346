"""Full fine-tuning: classes through the whole model."""

from __future__ import annotations

from dataclasses import replace

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


def test_a_clip_that_is_mostly_white_has_mostly_the_label_of_white(monkeypatch):
    """Pixels and labels are mixed by the same shares: those swapped on one side are told here."""
    task = toy_task(config(mixup=0.3)).train()
    with torch.no_grad():
        for parameter in task.classifier.parameters():
            parameter.mul_(50)  # fresh logits are nearly equal, whatever their label
    white, black = 2, 0
    batch = toy_batch(size=2, frames=1)
    batch.pixels_BTCHW[0], batch.pixels_BTCHW[1] = 255, 0
    batch = replace(batch, label_B=torch.tensor([white, black]))
    seen, logits = [], []
    encode, classify = task.tokenizer.encode, task.classifier.forward
    monkeypatch.setattr(
        task.tokenizer, "encode", lambda pixels: seen.append(pixels) or encode(pixels)
    )
    monkeypatch.setattr(
        task.classifier, "forward", lambda *args: logits.append(classify(*args)) or logits[-1]
    )
    for seed in range(4):
        torch.manual_seed(seed)
        loss = task(batch).loss
        share_B = seen[-1].mean(dim=(1, 2, 3))  # how white each of the two has become
        log_p_BC = logits[-1].log_softmax(1)
        expected_B = -(share_B * log_p_BC[:, white] + (1 - share_B) * log_p_BC[:, black])
        torch.testing.assert_close(loss, expected_B.mean(), atol=0.01, rtol=0)
        assert (share_B - 0.5).abs().max() > 0.1
        assert (log_p_BC[:, white] - log_p_BC[:, black]).abs().min() > 0.05


def test_evaluations_see_plain_pictures_and_plain_labels():
    regular = toy_task(config(mixup=0.8, label_smoothing=0.1, drop_path=0.5)).eval()
    plain = toy_task(config()).eval()
    outputs = [task(toy_batch(frames=1)) for task in (regular, plain)]
    assert outputs[0].loss.item() == outputs[1].loss.item()
    assert "accuracy" not in regular.train()(toy_batch(frames=1)).metrics
    assert "accuracy" in plain.train()(toy_batch(frames=1)).metrics
