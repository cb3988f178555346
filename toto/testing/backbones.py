"""The contract of a backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from toto.backbones.base import PARAM_ROLES, Backbone
from toto.backbones.config import BackboneConfig, MaskConfig
from toto.sequence import SequenceLayout
from toto.testing.contract import (
    check_count,
    check_step,
    close,
    described,
    difference,
    expect,
    generator,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_backbone", "missing_options"]

# What rounding does to an output that should stay is below; fresh weights move others by 1e-2.
MOVED = 1e-5

# How far `forward_macs` may be from what torch's FLOP counter finds.
MACS_TOLERANCE = 0.05


def check_backbone(config: BackboneConfig, *, length: int = 24) -> list[str]:
    """Check shapes, counts, roles, layers, causality, masks, the cache, and an optimizer step.

    Args:
        config: of any size; small is quick.
        length: L of the test sequences.

    Returns:
        What was checked, a line each.

    Raises:
        ContractError: the first breach.
    """
    torch.manual_seed(0)
    backbone = config.build()
    expect(
        isinstance(backbone, Backbone),
        f"build() returned {described(backbone)} instead of a Backbone",
    )
    backbone.eval()
    count = check_count(backbone, config.num_params(), "num_params()")
    _check_roles(backbone)
    _check_param_layers(backbone)
    x_BLD = torch.randn(2, length, config.width, generator=generator())
    out_BLD = _check_outputs(backbone, x_BLD)
    _check_features(backbone, x_BLD)
    _check_masks(backbone)
    _check_cache(backbone, x_BLD, out_BLD)
    _check_macs(backbone, length)
    check_step(backbone, backbone.param_roles(), lambda: backbone(x_BLD))
    return [
        f"forward: [B, L, {config.width}], {count:,} parameters as num_params() says",
        f"forward_macs() is within {MACS_TOLERANCE:.0%} of torch's FLOP counter",
        "causal, layers 0..L as agreed",
        "a role for every parameter, and an optimizer step changes each of them",
        f"reads what the masks say: {', '.join(config.masks)}",
        "step by step with a cache as in one pass",
    ]


def missing_options(config: BackboneConfig) -> list[str]:
    """Return the optional methods that a backbone lacks, and what toto refuses or loses for it.

    Args:
        config: of any size; the backbone is built.

    Returns:
        A line for each, none where the backbone has all.
    """
    built, described_by = type(config.build()), type(config)
    options = (
        (built, Backbone, "param_layers", "optimizer.layer_decay other than 1 is refused"),
        (built, Backbone, "recompute_activations", "training.recompute: true is refused"),
        (built, Backbone, "drop_paths", "task.drop_path other than 0 is refused"),
        (built, Backbone, "compile_blocks", "training.compile leaves its blocks eager"),
        (built, Backbone, "extend", "toto generate computes all earlier positions again"),
        (built, Backbone, "forward_with_features", "probes during training compute blocks twice"),
        (described_by, BackboneConfig, "block_memory", "toto plan prints ? for its memory"),
    )
    return [
        f"no {name}(): {consequence}"
        for cls, base, name, consequence in options
        if getattr(cls, name) is getattr(base, name)
    ]


def _check_roles(backbone: Backbone) -> None:
    """Check that every parameter has one of the known roles."""
    names, roles = {name for name, _ in backbone.named_parameters()}, backbone.param_roles()
    expect(not names - set(roles), f"param_roles() has no role for {_listed(names - set(roles))}")
    expect(
        not set(roles) - names,
        f"param_roles() names {_listed(set(roles) - names)}, and there is no such parameter",
    )
    for name, role in roles.items():
        expect(
            role in PARAM_ROLES,
            f"param_roles() gives {name} the role {role!r}, and no group of the optimizer would "
            f"train it. Roles are {', '.join(PARAM_ROLES)}",
        )
        expect(
            role != "probe",
            f"param_roles() gives {name} the role 'probe', which leaves its gradient out of "
            "clipping: that is for probes that read a model",
        )


def _check_param_layers(backbone: Backbone) -> None:
    """Check `param_layers`, which is optional: a parameter without a layer has the whole rate."""
    if type(backbone).param_layers is Backbone.param_layers:
        return
    names, layers = {name for name, _ in backbone.named_parameters()}, backbone.param_layers()
    top = backbone.config.num_layers + 1
    expect(
        not names - set(layers), f"param_layers() has no layer for {_listed(names - set(layers))}"
    )
    expect(
        not set(layers) - names,
        f"param_layers() names {_listed(set(layers) - names)}, and there is no such parameter",
    )
    outside = {name: layer for name, layer in layers.items() if not 0 <= layer <= top}
    expect(not outside, f"param_layers() gives {outside}, and layers are 0..{top}")


@torch.no_grad()
def _check_outputs(backbone: Backbone, x_BLD: Tensor) -> Tensor:
    """Check shape and causality; return the output."""
    half = x_BLD.shape[1] // 2
    changed_BLD = x_BLD.clone()
    # Not one number for all channels: a norm that takes the mean away would not see it.
    changed_BLD[:, half:] += torch.randn(x_BLD.shape[-1], generator=generator())
    out_BLD: Tensor = backbone(x_BLD)
    changed_out_BLD = backbone(changed_BLD)
    expect(
        out_BLD.shape == x_BLD.shape,
        f"forward returned {list(out_BLD.shape)} for {list(x_BLD.shape)}",
    )
    change_L = (changed_out_BLD - out_BLD).abs().amax((0, 2))
    early = float(change_L[:half].max())
    expect(
        early <= MOVED,
        f"not causal: a change of the input from position {half} on changed the output of position "
        f"{int(change_L[:half].argmax())} by {early:.2g}",
    )
    expect(
        float(change_L[-1]) > MOVED,
        f"a change of the input from position {half} on changed the last output by only "
        f"{float(change_L[-1]):.2g}",
    )
    return out_BLD


@torch.no_grad()
def _check_features(backbone: Backbone, x_BLD: Tensor) -> None:
    """Check the keys of `features`, the embedding, and the last block."""
    top = backbone.config.num_layers
    features = backbone.features(x_BLD, [0, 1, -1])
    expect(
        set(features) == {0, 1, -1}, f"features(x, [0, 1, -1]) returned the keys {list(features)}"
    )
    expect(
        torch.equal(features[0], x_BLD),
        "layer 0 of features() differs from the input, which it should return as it is, by "
        f"{difference(features[0], x_BLD):.2g}",
    )
    last_BLD = backbone.features(x_BLD, [top])[top]
    expect(
        close(features[-1], last_BLD),
        f"layer -1 of features() differs from layer {top}, the last block, by "
        f"{difference(features[-1], last_BLD):.2g}",
    )


@torch.no_grad()
def _check_masks(backbone: Backbone) -> None:
    """Check under each mask of the config that a change reaches only those that may read it.

    Of three frames of 2 × 2 tokens the first token of the second one is changed. Where the mask
    lets earlier positions read it, some of them must move: how far a backbone reaches is up to it.
    """
    config, layout = backbone.config, SequenceLayout(3, 2, 2)
    changed = 1 + layout.tokens_per_frame
    x_BLD = torch.randn(2, layout.length, config.width, generator=generator())
    other_BLD = x_BLD.clone()
    other_BLD[:, changed] += torch.randn(config.width, generator=generator())
    for name in config.masks:
        mask = MaskConfig(name=name, frames=2 if name == "prefix" else None).build(layout)
        change_BLD = backbone(other_BLD, mask) - backbone(x_BLD, mask)
        moved = _numbers(change_BLD.abs().amax((0, 2)) > MOVED)
        reading = _numbers(mask.dense(0, layout.length, x_BLD.device)[:, changed])
        expect(
            moved <= reading,
            f"under the mask {name} positions {sorted(moved - reading)} changed with position "
            f"{changed}, which they must not read",
        )
        before = {number for number in reading if number < changed}
        expect(
            not before or bool(moved & before),
            f"under the mask {name} none of the positions {sorted(before)} changed with position "
            f"{changed}, which they read",
        )


@torch.no_grad()
def _check_cache(backbone: Backbone, x_BLD: Tensor, out_BLD: Tensor) -> None:
    """Check that a prompt at once and then position by position gives what one pass gives."""
    length = x_BLD.shape[1]
    cache = backbone.new_cache(length)
    prompt = length // 2
    parts = [backbone.extend(x_BLD[:, :prompt], cache)]
    parts += [backbone.extend(x_BLD[:, t : t + 1], cache) for t in range(prompt, length)]
    together_BLD = torch.cat(parts, dim=1)
    expect(
        together_BLD.shape == out_BLD.shape,
        f"extend with a cache returned {list(together_BLD.shape)} in all, and forward "
        f"{list(out_BLD.shape)}",
    )
    error_L = (together_BLD - out_BLD).abs().amax((0, 2))
    expect(
        torch.allclose(together_BLD, out_BLD, atol=1e-4),
        "extend with a cache, a prompt and then one position at a time, differs from forward by up "
        f"to {float(error_L.max()):.2g}, at position {int(error_L.argmax())}",
    )


@torch.no_grad()
def _check_macs(backbone: Backbone, length: int) -> None:
    """Check `forward_macs` against torch's FLOP counter.

    Two lengths tell the part that grows with the length from the part that grows with its square:
    attention, which may count as its causal half or as the whole square.
    """
    config, lengths = backbone.config, (length, 2 * length)
    stated = [config.forward_macs(at) - config.elementwise_macs(at) for at in lengths]
    counted = [_counted_macs(backbone, at) for at in lengths]
    linear = [(4 * once - twice) / 2 for once, twice in (stated, counted)]
    square = [(twice - 2 * once) / 2 for once, twice in (stated, counted)]
    tolerance = MACS_TOLERANCE * counted[0]
    expect(
        abs(linear[0] - linear[1]) <= tolerance
        and square[1] / 2 - tolerance <= square[0] <= square[1] + tolerance,
        f"forward_macs() less elementwise_macs() is {stated[0]:,} for {length} positions and "
        f"{stated[1]:,} for {2 * length}, and torch's FLOP counter finds {counted[0]:,} and "
        f"{counted[1]:,} multiply-accumulates in matrix products",
    )


def _counted_macs(backbone: Backbone, length: int) -> int:
    x_BLD = torch.randn(1, length, backbone.config.width, generator=generator())
    # The counter has no formula for the CPU's fused attention, nor for oneDNN's LSTM.
    onednn = torch.backends.mkldnn.flags(enabled=False, allow_tf32=None)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), onednn, counter:
        backbone(x_BLD)
    return counter.get_total_flops() // 2


def _numbers(chosen_L: Tensor) -> set[int]:
    return set(chosen_L.nonzero().flatten().tolist())


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
