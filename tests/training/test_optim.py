from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from toto.errors import UserError
from toto.training.config import OptimizerConfig, ScheduleConfig
from toto.training.optim import (
    build_optimizer,
    clip_sets,
    load_optimizer_tensors,
    optimizer_tensors,
    parameter_groups,
)
from toto.training.schedule import WarmupCosine


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.hidden = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.readout = nn.Linear(4, 5, bias=False)

    def forward(self, ids):
        return self.readout(self.norm(self.hidden(self.embed(ids))))


ROLES = {
    "embed.weight": "embed",
    "hidden.weight": "hidden",
    "hidden.bias": "hidden",
    "norm.weight": "norm",
    "norm.bias": "norm",
    "readout.weight": "readout",
}


def take_steps(module: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        module(torch.arange(5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_only_matrices_of_hidden_and_readout_decay():
    decayed, plain = parameter_groups(Parts(), ROLES, 0.1)
    assert [name for name, _ in decayed["params"]] == ["hidden.weight", "readout.weight"]
    assert {name for name, _ in plain["params"]} == ROLES.keys() - {
        "hidden.weight",
        "readout.weight",
    }
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


def test_frozen_parameters_are_left_out():
    parts = Parts()
    parts.hidden.requires_grad_(False)
    names = [name for group in parameter_groups(parts, ROLES, 0.1) for name, _ in group["params"]]
    assert "hidden.weight" not in names
    assert "readout.weight" in names


@pytest.mark.parametrize(
    ("roles", "named"),
    [
        ({k: v for k, v in ROLES.items() if k != "norm.bias"}, "norm.bias"),
        (ROLES | {"gone": "norm"}, "gone"),
    ],
)
def test_roles_that_do_not_fit_are_refused(roles, named):
    with pytest.raises(UserError, match=named):
        parameter_groups(Parts(), roles, 0.1)


def test_an_unknown_role_is_refused():
    roles = ROLES | {"hidden.weight": "hiden"}
    message = "gives hidden.weight the unknown role 'hiden'; roles are embed, .* mean 'hidden'"
    with pytest.raises(UserError, match=message):
        parameter_groups(Parts(), roles, 0.1)


def test_fused_adamw_equals_the_plain_loop():
    config = OptimizerConfig(lr=1e-2)
    modules = []
    for fused in (True, False):
        torch.manual_seed(0)
        module = Parts()
        optimizer = build_optimizer(module, ROLES, config)
        if not fused:
            optimizer = torch.optim.AdamW(
                parameter_groups(module, ROLES, config.weight_decay),
                lr=config.lr,
                betas=config.betas,
                eps=config.eps,
                foreach=False,
                fused=False,
            )
        take_steps(module, optimizer, 5)
        modules.append(module)
    for fused, plain in zip(*(m.parameters() for m in modules), strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-6, atol=1e-6)


def test_optimizer_state_travels_by_name():
    config = OptimizerConfig(lr=1e-2)
    first = Parts()
    optimizer = build_optimizer(first, ROLES, config)
    take_steps(first, optimizer, 3)
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
    assert tensors["hidden.weight.exp_avg"].shape == (4, 4)
    assert tensors["hidden.weight.step"] == 3

    second = Parts()
    second.load_state_dict(first.state_dict())
    other = build_optimizer(second, dict(reversed(ROLES.items())), config)
    load_optimizer_tensors(other, tensors)
    take_steps(first, optimizer, 2)
    take_steps(second, other, 2)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_schedule_values():
    lr = WarmupCosine(ScheduleConfig(warmup_steps=10, final_fraction=0.1), peak=2.0, steps=110)
    assert lr(0) == pytest.approx(0.2)
    assert lr(9) == lr(10) == pytest.approx(2.0)
    assert lr(60) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert lr(35) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))))
    assert lr(110) == pytest.approx(0.2)
    assert lr(10_000) == pytest.approx(0.2)


def test_schedule_without_warmup_begins_at_the_peak_and_one_longer_than_the_run_only_rises():
    assert WarmupCosine(ScheduleConfig(warmup_steps=0), peak=1.0, steps=5)(0) == 1.0
    rising = WarmupCosine(ScheduleConfig(warmup_steps=10), peak=1.0, steps=5)
    assert [rising(step) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_moments_are_loaded_as_their_parameter_lies():
    """The fused kernel of a CPU walks raw memory: moments in another order would be mixed up."""

    def train(conv, optimizer, steps):
        for step in steps:
            x_BCHW = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(step))
            conv(x_BCHW).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    def fresh():
        torch.manual_seed(0)
        conv = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        roles = {"weight": "hidden", "bias": "hidden"}
        return conv, build_optimizer(conv, roles, OptimizerConfig(lr=1e-2))

    conv, optimizer = fresh()
    train(conv, optimizer, range(2))
    saved = {name: t.clone(memory_format=torch.contiguous_format)
             for name, t in optimizer_tensors(optimizer).items()}  # fmt: skip
    resumed, other = fresh()
    resumed.load_state_dict(conv.state_dict())
    load_optimizer_tensors(other, saved)
    for model, state in ((conv, optimizer), (resumed, other)):
        train(model, state, range(2, 4))
    assert torch.equal(conv.weight, resumed.weight)
    assert torch.equal(conv.bias, resumed.bias)


def test_under_mup_hidden_matrices_learn_slower_and_shrink_alike():
    groups = parameter_groups(Parts(), ROLES, 0.1, width_ratio=4.0)
    found = {
        name: (group["lr_scale"], group["weight_decay"], group["lr_scale"] * group["weight_decay"])
        for group in groups
        for name, _ in group["params"]
    }
    assert found["hidden.weight"] == (0.25, 0.4, pytest.approx(0.1))
    assert found["readout.weight"] == (1.0, 0.1, pytest.approx(0.1))
    assert found["embed.weight"] == found["hidden.bias"] == (1.0, 0.0, 0.0)


def test_parts_that_are_clipped_apart_have_norms_of_their_own():
    parts = Parts()
    optimizer = build_optimizer(parts, ROLES, OptimizerConfig(), clipped_apart=("readout.",))
    assert clip_sets(optimizer) == []  # nothing has a gradient yet
    parts(torch.arange(5)).square().sum().backward()
    names = {parameter: name for name, parameter in parts.named_parameters()}
    sets = [{names[parameter] for parameter in members} for members in clip_sets(optimizer)]
    assert sets == [ROLES.keys() - {"readout.weight"}, {"readout.weight"}]
