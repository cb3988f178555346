"""AdamW over parameters grouped by their role."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from toto.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from toto.backbones.base import ParamRole
    from toto.training.config import OptimizerConfig

__all__ = ["build_optimizer", "load_optimizer_tensors", "optimizer_tensors", "parameter_groups"]

DECAYED_ROLES: frozenset[ParamRole] = frozenset({"hidden", "readout"})


def parameter_groups(
    module: nn.Module, roles: Mapping[str, ParamRole], weight_decay: float
) -> list[dict[str, Any]]:
    """The trained parameters in two groups: with weight decay, and without.

    Matrices of the roles hidden and readout decay; norms, embeddings (a tied readout is one) and
    everything with fewer than two axes, so every bias, do not.

    Raises:
        UserError: a parameter without a role, or a role without a parameter.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    without_role = sorted(trained.keys() - roles.keys())
    without_parameter = sorted(roles.keys() - dict(module.named_parameters()).keys())
    if without_role or without_parameter:
        raise UserError(
            f"param_roles() of {type(module).__name__} does not fit its parameters: "
            f"no role for {without_role}, no parameter for {without_parameter}. "
            "Name each parameter once, as named_parameters() does"
        )
    decayed: list[tuple[str, nn.Parameter]] = []
    plain: list[tuple[str, nn.Parameter]] = []
    for name, parameter in trained.items():
        decays = roles[name] in DECAYED_ROLES and parameter.ndim >= 2
        (decayed if decays else plain).append((name, parameter))
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    module: nn.Module, roles: Mapping[str, ParamRole], config: OptimizerConfig
) -> torch.optim.AdamW:
    """AdamW, fused: torch has that kernel on the CPU and on CUDA, the devices of a recipe.

    The learning rate is set before every step by the engine.
    """
    groups = parameter_groups(module, roles, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `{"<parameter>.<slot>": tensor}`: exp_avg, exp_avg_sq, step."""
    return {
        f"{name}.{slot}": tensor
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
        for slot, tensor in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Replace the state by what `optimizer_tensors` gave, whatever the order of the parameters.

    Files hold tensors in the plain order. The fused AdamW of a CPU walks raw memory, so that
    moments must lie as their parameter does, which may be channels last.
    """
    state: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, slot = key.rpartition(".")
        state.setdefault(name, {})[slot] = tensor
    named = [
        pair
        for group in optimizer.param_groups
        for pair in zip(group["param_names"], group["params"], strict=True)
    ]
    optimizer.load_state_dict(
        {
            "state": {
                index: {slot: _laid_out_as(parameter, t) for slot, t in state[name].items()}
                for index, (name, parameter) in enumerate(named)
                if name in state
            },
            "param_groups": optimizer.state_dict()["param_groups"],
        }
    )


def _laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    if tensor.shape != parameter.shape:  # the number of steps
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
