"""LARS, the optimizer of MAE's linear probing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Lars"]

MOMENTUM = 0.9
TRUST = 0.001


class Lars(torch.optim.Optimizer):
    """Momentum whose step of each matrix is scaled to the matrix (You et al. 2017).

    The gradient and the decay of a matrix W come to `g`, which counts 0.001 · |W| / |g| times;
    vectors neither decay nor are scaled. As facebookresearch/mae, util/lars.py; torch has none.

    Args:
        groups: parameters with `lr` and `weight_decay`.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad
                if parameter.ndim > 1:
                    update = update.add(parameter, alpha=group["weight_decay"])
                    size, change = parameter.norm(), update.norm()
                    known = (size > 0) & (change > 0)
                    update = update * torch.where(known, TRUST * size / change, 1.0)
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].mul_(MOMENTUM).add_(update)
                parameter.add_(state["momentum"], alpha=-group["lr"])
