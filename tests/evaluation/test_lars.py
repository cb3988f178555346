from __future__ import annotations

import torch
from torch import nn

from toto.evaluation.lars import Lars


def test_two_steps_by_hand():
    matrix, vector = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([1.0]))
    groups = [
        {"params": [matrix], "lr": 2.0, "weight_decay": 0.5},
        {"params": [vector], "lr": 0.1, "weight_decay": 0.0},
    ]
    optimizer = Lars(groups)
    matrix.grad, vector.grad = torch.tensor([[1.5, 2.0]]), torch.tensor([2.0])
    optimizer.step()
    # g = grad + 0.5 · W = (3, 4), as long as W: it counts 0.001 times.
    torch.testing.assert_close(matrix.detach(), torch.tensor([[3 - 0.006, 4 - 0.008]]))
    torch.testing.assert_close(vector.detach(), torch.tensor([0.8]))
    vector.grad = torch.tensor([1.0])
    matrix.grad = None
    optimizer.step()
    torch.testing.assert_close(vector.detach(), torch.tensor([0.8 - 0.1 * (0.9 * 2 + 1)]))


def test_without_a_size_the_gradient_counts_as_it_is():
    matrix = nn.Parameter(torch.zeros(1, 2))
    optimizer = Lars([{"params": [matrix], "lr": 1.0, "weight_decay": 0.0}])
    matrix.grad = torch.tensor([[3.0, 4.0]])
    optimizer.step()
    assert matrix.tolist() == [[-3.0, -4.0]]
    matrix.grad = torch.zeros(1, 2)
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.tensor([[-5.7, -7.6]]))
