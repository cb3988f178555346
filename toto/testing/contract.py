"""What the checks of all families share: the error, and checks of parameters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from toto.errors import UserError
from toto.training.config import OptimizerConfig
from toto.training.optim import build_optimizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from toto.backbones.base import ParamRole

__all__ = [
    "ContractError",
    "check_count",
    "check_step",
    "close",
    "described",
    "difference",
    "expect",
    "generator",
]


class ContractError(UserError):
    """A component that breaks its contract."""


def expect(holds: bool, fault: str) -> None:
    """Raise ContractError with the fault unless the condition holds."""
    if not holds:
        raise ContractError(f"contract broken: {fault}")


def check_count(module: nn.Module, stated: int, method: str) -> int:
    """Return the number of parameters, which must be the stated one."""
    real = sum(parameter.numel() for parameter in module.parameters())
    expect(real == stated, f"{method} says {stated:,}, and build() returned {real:,} parameters")
    return real


def check_step(module: nn.Module, roles: dict[str, ParamRole], run: Callable[[], Tensor]) -> None:
    """Check that one step of the optimizer of trainings changes every trainable parameter.

    Weights get a little noise first: a matrix that starts at zero stops the gradient of those
    before it. There is no weight decay, which would change weights without a gradient.

    Args:
        module: changed by the check.
        roles: of its parameters.
        run: computes an output of the module.
    """
    module.train()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator()), alpha=0.02)
    optimizer = build_optimizer(module, roles, OptimizerConfig(lr=0.1, weight_decay=0.0))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    output = run()
    # Not the plain sum of squares: a norm at the end would make it a constant.
    loss = (output * torch.randn(output.shape, generator=generator())).sum()
    torch.autograd.backward(loss)
    optimizer.step()
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    without = [name for name, parameter in trained.items() if parameter.grad is None]
    expect(not without, f"no gradient reaches {', '.join(without)}")
    same = [name for name, parameter in trained.items() if torch.equal(parameter, before[name])]
    expect(not same, f"an optimizer step does not change {', '.join(same)}")


def described(value: object) -> str:
    """Return how messages call a value of an unexpected type."""
    return "None" if value is None else f"a {type(value).__name__}"


def difference(first: Tensor, second: Tensor) -> float:
    """Return the largest absolute difference; infinity where the shapes differ."""
    if first.shape != second.shape:
        return math.inf
    return float((first - second).detach().abs().max())


def close(first: Tensor, second: Tensor) -> bool:
    """Return whether two outputs agree up to the rounding of fp32."""
    return first.shape == second.shape and torch.allclose(first, second, atol=1e-4, rtol=1e-4)


def generator() -> torch.Generator:
    """Return a fresh generator, always with the same seed."""
    return torch.Generator().manual_seed(0)
