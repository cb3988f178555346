from __future__ import annotations

import pytest
import torch

from toto.layers import loss
from toto.layers.loss import LinearCrossEntropy, linear_cross_entropy


@pytest.mark.parametrize("rows", [(1, 1), (3, 19), (2, 50)])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_chunked_cross_entropy_equals_the_plain_one_with_gradients(rows, bf16):
    torch.manual_seed(0)
    features = torch.randn(*rows, 16)
    weight = torch.randn(37, 16)
    targets = torch.randint(37, rows)
    upstream = torch.randn(rows)  # not the same for all rows, as a mean's is
    found = []
    for path in (LinearCrossEntropy(), linear_cross_entropy):
        x, w = features.clone().requires_grad_(), weight.clone().requires_grad_()
        flat = path is linear_cross_entropy
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = path(x.flatten(0, 1) if flat else x, w, targets.flatten() if flat else targets)
        assert losses.dtype == torch.float32
        (losses.view(rows) * upstream).sum().backward()
        found.append((losses.view(rows), x.grad, w.grad))
    tolerance = 0.02 if bf16 else 1e-5
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)


def test_gradient_of_a_confident_target_keeps_its_precision_in_bf16():
    weight = torch.tensor([[8.0], [0.0]])  # softmax 1 - 3e-4
    x = torch.ones(1, 1, 1, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        LinearCrossEntropy()(x, weight, torch.zeros(1, 1, dtype=torch.long)).sum().backward()
    expected = -8.0 * torch.tensor(-8.0).sigmoid()
    torch.testing.assert_close(x.grad.squeeze(), expected, rtol=0.01, atol=0)


def test_without_gradients_the_losses_are_the_same():
    x, weight, targets = torch.randn(2, 9, 8), torch.randn(20, 8), torch.randint(20, (2, 9))
    losses = LinearCrossEntropy()(x, weight, targets)
    with torch.no_grad():
        torch.testing.assert_close(LinearCrossEntropy()(x, weight, targets), losses)


@pytest.mark.parametrize("learning", [False, True])
def test_never_all_logits_stand_at_once(learning, monkeypatch):
    seen = []
    monkeypatch.setattr(
        loss,
        "linear",
        lambda x, weight: seen.append(len(x)) or torch.nn.functional.linear(x, weight),
    )
    x = torch.randn(4, 40, 8, requires_grad=learning)
    with torch.set_grad_enabled(learning):
        LinearCrossEntropy()(x, torch.randn(20, 8), torch.randint(20, (4, 40)))
    assert sum(seen) == 160
    assert max(seen) == 10
