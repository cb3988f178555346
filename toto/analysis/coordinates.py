"""The coordinate check of µP: do activations keep their size when the width grows?

Models of several widths take the same few steps on the same random codes. Under µP the mean |x| of
every layer's output is about the same at every width after every step; without it some grow with
the width as training goes on. Source: Yang et al. 2022 (arXiv 2203.03466), App. D.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from toto.model import AutoregressiveModel
from toto.tokenizers.config import DvaeConfig
from toto.training.config import OptimizerConfig
from toto.training.optim import build_optimizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from toto.backbones.config import BackboneConfig

__all__ = ["NUM_CODES", "Coordinates", "check_coordinates", "slope"]

NUM_CODES = 252
"""Of the random codes: 256 ids with the special ones."""

SHAPE_BTHW = (8, 1, 8, 8)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Coordinates:
    """What was measured of one kind of activation.

    Attributes:
        name: "layer k" (its output less its input; 0 is the embedding) or "logits".
        sizes: `[step][width]`, the mean |x| after that many steps.
    """

    name: str
    sizes: list[list[float]]


def check_coordinates(
    config: BackboneConfig,
    widths: Sequence[int],
    *,
    lr: float,
    steps: int,
    seeds: int = 1,
    progress: Progress = lambda done, total: None,
) -> list[Coordinates]:
    """Train a few steps at each width, and measure before each and after the last.

    Args:
        config: the backbone; its depth, heads and ratios are kept, its width is not.
        widths: at least two.
        lr: peak learning rate, constant here.
        steps: optimizer steps.
        seeds: models of each width, averaged.
        progress: called after each model.

    Returns:
        Of each layer and the logits, averaged over the seeds.
    """
    sums: dict[str, list[list[float]]] = {}
    for index, width in enumerate(widths):
        for seed in range(seeds):
            measured = _trajectory(config.at_width(width), lr, steps, seed)
            for step, sizes in enumerate(measured):
                for name, size in sizes.items():
                    table = sums.setdefault(name, [[0.0] * len(widths) for _ in measured])
                    table[step][index] += size / seeds
            progress(index * seeds + seed + 1, len(widths) * seeds)
    return [Coordinates(name, sizes) for name, sizes in sums.items()]


def slope(widths: Sequence[int], sizes: Sequence[float]) -> float:
    """Of ln size over ln width, by least squares: 0 is flat, 1 is in proportion to the width."""
    x = torch.tensor([math.log(width) for width in widths], dtype=torch.float64)
    y = torch.tensor([math.log(max(size, 1e-30)) for size in sizes], dtype=torch.float64)
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / x.square().sum())


def _trajectory(config: BackboneConfig, lr: float, steps: int, seed: int) -> list[dict[str, float]]:
    torch.manual_seed(seed)
    codes_BTHW = torch.randint(NUM_CODES, SHAPE_BTHW)
    is_image_B = torch.ones(SHAPE_BTHW[0], dtype=torch.bool)
    model = AutoregressiveModel(DvaeConfig(num_codes=NUM_CODES), config)
    optimizer = build_optimizer(
        model, model.param_roles(), OptimizerConfig(lr=lr), width_ratio=model.width_ratio
    )
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    found = [_sizes(model, codes_BTHW, is_image_B)]
    for _ in range(steps):
        torch.autograd.backward(model.losses(codes_BTHW, is_image_B).mean())
        optimizer.step()
        optimizer.zero_grad()
        found.append(_sizes(model, codes_BTHW, is_image_B))
    return found


@torch.no_grad()
def _sizes(model: AutoregressiveModel, codes_BTHW: Tensor, is_image_B: Tensor) -> dict[str, float]:
    depth = model.backbone.config.num_layers
    x_BLD = model.interface.embed(codes_BTHW, is_image_B)
    layers = model.backbone.features(x_BLD, list(range(depth + 1)))
    sizes = {"layer 0": _mean_size(layers[0])}
    for layer in range(1, depth + 1):
        sizes[f"layer {layer}"] = _mean_size(layers[layer] - layers[layer - 1])
    last_BLD = model.backbone(x_BLD)
    sizes["logits"] = _mean_size(model.interface.logits(last_BLD.flatten(0, 1)))
    return sizes


def _mean_size(x: Tensor) -> float:
    return x.double().abs().mean().item()
