"""AdamW over parameters grouped by their role."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from toto.backbones.base import PARAM_ROLES
from toto.errors import UserError
from toto.registry import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from toto.backbones.base import ParamRole
    from toto.training.config import OptimizerConfig

__all__ = [
    "MOMENTS",
    "build_optimizer",
    "clip_sets",
    "expected_slots",
    "laid_out_as",
    "load_optimizer_tensors",
    "optimizer_tensors",
    "parameter_groups",
]


MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's tensors of the shape of their parameter; beside them "step" counts."""


def parameter_groups(
    module: nn.Module,
    roles: Mapping[str, ParamRole],
    weight_decay: float,
    *,
    width_ratio: float = 1.0,
    lr_scales: Mapping[str, float] = MappingProxyType({}),
    clipped_apart: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The trained parameters by their weight decay and the scale of their learning rate.

    Matrices of the roles hidden and readout decay, and filters, the embedding of patches among
    them; norms, embeddings of codes (a tied readout is one) and everything with fewer than two
    axes, so every bias, do not. Under µP (Yang et al. 2022, Table 8) the rate of hidden matrices
    alone is over m; AdamW decays by rate times decay, so that their decay is m times as large, and
    the shrinkage of a step is the same at every width.
    Probes decay as readouts do, but their gradients are not clipped: a norm over all would let them
    slow the model.

    Args:
        module: what is trained.
        roles: of its parameters.
        weight_decay: at width ratio 1.
        width_ratio: m, the width over the base width of µP; 1 without it.
        lr_scales: factors on the rate by the name of the parameter; those not named have 1.
        clipped_apart: beginnings of names; the gradients of each are clipped to a norm of their
            own, and all others together.

    Returns:
        Groups with "params", "weight_decay", "lr_scale" and "clip", the set that is clipped
        together (None: not clipped): hidden matrices first, then readouts, what does not decay,
        and probes.

    Raises:
        UserError: a parameter without a role, a role without a parameter, or an unknown role.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    _check_roles(module, roles)
    groups: dict[_Kind, list[tuple[str, nn.Parameter]]] = {}
    for together in _ORDER:
        for name, parameter in trained.items():
            role = _role(roles[name], parameter)
            if role not in together:
                continue
            ratio = width_ratio if role == "hidden" else 1.0
            decays = parameter.ndim >= 2 and role in ("hidden", "filter", "readout", "probe")
            kind = _Kind(
                decays=decays,
                weight_decay=weight_decay * ratio if decays else 0.0,
                lr_scale=lr_scales.get(name, 1.0) / ratio,
                clip=None if role == "probe" else _first_prefix(name, clipped_apart),
            )
            groups.setdefault(kind, []).append((name, parameter))
    placed = sorted(name for members in groups.values() for name, _ in members)
    assert placed == sorted(trained), "not every trained parameter is in exactly one group"
    return [
        {
            "params": members,
            "weight_decay": kind.weight_decay,
            "lr_scale": kind.lr_scale,
            "clip": kind.clip,
        }
        for kind, members in groups.items()
    ]


def _check_roles(module: nn.Module, roles: Mapping[str, str]) -> None:
    """Refuse roles that would leave a parameter out of every group of the optimizer.

    Raises:
        UserError: see `parameter_groups`.
    """
    named = dict(module.named_parameters())
    without_role = sorted(
        name for name, p in named.items() if p.requires_grad and name not in roles
    )
    without_parameter = sorted(roles.keys() - named.keys())
    if without_role or without_parameter:
        raise UserError(
            f"param_roles() of {type(module).__name__} does not fit its parameters: "
            f"no role for {without_role}, no parameter for {without_parameter}. "
            "Name each parameter once, as named_parameters() does"
        )
    for name, role in roles.items():
        if role not in PARAM_ROLES:
            guess = nearest(str(role), list(PARAM_ROLES))
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise UserError(
                f"param_roles() of {type(module).__name__} gives {name} the unknown role {role!r}; "
                f"roles are {', '.join(PARAM_ROLES)}.{hint}"
            )


class _Kind(NamedTuple):
    """What the parameters of a group have in common."""

    decays: bool
    weight_decay: float
    lr_scale: float
    clip: str | None


# Of the groups, and so of the sum in the gradient's norm.
_ORDER: tuple[tuple[ParamRole, ...], ...] = (
    ("hidden", "filter"),
    ("readout",),
    ("embed", "norm"),
    ("probe",),
)


def _role(role: ParamRole, parameter: nn.Parameter) -> ParamRole:
    """Vectors go with the norms; those of probes stay with the probes."""
    return role if parameter.ndim >= 2 or role == "probe" else "norm"


def _first_prefix(name: str, prefixes: Sequence[str]) -> str:
    """Return the first prefix that the name begins with; without one, the empty string."""
    return next((prefix for prefix in prefixes if name.startswith(prefix)), "")


def clip_sets(optimizer: torch.optim.Optimizer) -> list[list[nn.Parameter]]:
    """Return the parameters that have a gradient to clip, a list for each norm.

    Probes are in none; a set without any gradient is left out.
    """
    sets: dict[str, list[nn.Parameter]] = {}
    for group in optimizer.param_groups:
        if group["clip"] is not None:
            reached = [parameter for parameter in group["params"] if parameter.grad is not None]
            sets.setdefault(group["clip"], []).extend(reached)
    return [members for members in sets.values() if members]


def build_optimizer(
    module: nn.Module,
    roles: Mapping[str, ParamRole],
    config: OptimizerConfig,
    *,
    width_ratio: float = 1.0,
    lr_scales: Mapping[str, float] = MappingProxyType({}),
    clipped_apart: Sequence[str] = (),
) -> torch.optim.AdamW:
    """AdamW, fused: torch has that kernel on the CPU and on CUDA, the devices of a recipe.

    The learning rate is set before every step by the engine, times each group's "lr_scale".
    """
    groups = parameter_groups(
        module,
        roles,
        config.weight_decay,
        width_ratio=width_ratio,
        lr_scales=lr_scales,
        clipped_apart=clipped_apart,
    )
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `{"<parameter>.<slot>": tensor}`: exp_avg, exp_avg_sq, step."""
    return {
        f"{name}.{slot}": tensor
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
        for slot, tensor in optimizer.state[parameter].items()
    }


def expected_slots(
    parameters: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What `<parameter>.<slot>` must be for every parameter that has had a gradient, for its shape.

    Args:
        parameters: by name; only their shapes count.
        found: a state, which tells which of them have had one.
    """
    started = {key.rpartition(".")[0] for key in found}
    slots: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        if name in started:
            slots |= {f"{name}.{slot}": parameter for slot in MOMENTS}
            slots[f"{name}.step"] = parameter.new_empty(())
    return slots


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
                index: {slot: laid_out_as(parameter, t) for slot, t in state[name].items()}
                for index, (name, parameter) in enumerate(named)
                if name in state
            },
            "param_groups": optimizer.state_dict()["param_groups"],
        }
    )


def laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` in the memory order of `parameter`; as it is where its shape is another."""
    if tensor.shape != parameter.shape:  # the number of steps
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
