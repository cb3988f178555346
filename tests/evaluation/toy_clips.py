"""Labelled clips of codes, and a frozen model whose features are random tables of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import nn

from toto.data.batch import Batch

CODES, FRAMES, SIDE, WIDTH, DEPTH = 16, 2, 3, 12, 2


@dataclass
class ToyClips:
    """Clips in memory; `reads` counts the samples read, `draws` views, `positions` samples."""

    codes_STHW: torch.Tensor
    label_S: torch.Tensor
    reads: int = 0
    draws: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    shift: int = 0
    is_image: bool = False

    def __len__(self):
        return len(self.label_S)

    def batches(self, order, size, draw=0):
        for start in range(0, len(order), size):
            rows = torch.tensor(list(order[start : start + size]))
            self.reads += len(rows)
            self.draws += [draw] * len(rows)
            self.positions += rows.tolist()
            yield Batch(
                pixels_BTCHW=None,
                codes_BTHW=(self.codes_STHW[rows] + self.shift * draw) % CODES,
                is_image_B=torch.full((len(rows),), self.is_image),
                source_B=torch.zeros(len(rows), dtype=torch.int64),
                position_B=rows,
                label_B=self.label_S[rows],
            )


def toy_clips(samples, classes, seed, separable=True):
    """Random codes; where separable, one token in 18 tells the class by its code."""
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, FRAMES, SIDE, SIDE)
    codes = torch.randint(classes, CODES, shape, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)
    if separable:
        places = torch.randint(FRAMES * SIDE**2, (samples,), generator=generator)
        codes.view(samples, FRAMES * SIDE**2)[torch.arange(samples), places] = labels
    return ToyClips(codes, labels)


class ToyModel(nn.Module):
    """Stands in for AutoregressiveModel: layer k is a random table of codes, scaled by k + 1."""

    def __init__(self, scale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        table = torch.randn(DEPTH + 1, CODES, WIDTH, generator=generator)
        self.table = nn.Parameter(table * scale * torch.arange(1, DEPTH + 2)[:, None, None])
        self.backbone = SimpleNamespace(config=SimpleNamespace(width=WIDTH, num_layers=DEPTH))

    def features(self, frames, is_image_B, layers):
        return {layer: self.table[layer][frames.flatten(1)] for layer in layers}
