"""Readouts with their loss: the last product of a model and what it costs, in one module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

__all__ = ["LinearCrossEntropy", "LinearSquaredError", "linear_cross_entropy"]

CHUNKS = 16
"""Rows are scored in so many parts. At 4104 rows of 8196 logits, compiled on one core of a Xeon
with AMX, 4 take 188 ms a step, 16 take 152 and 64 take 164; all at once 200."""


def linear_cross_entropy(x_SD: Tensor, weight_VD: Tensor, targets_S: Tensor) -> Tensor:
    """The plain path: logits `x Wᵀ` of S rows, and each target's cross-entropy in nats, fp32."""
    return cross_entropy(linear(x_SD, weight_VD).float(), targets_S, reduction="none")


def _by_parts(x_SD: Tensor, weight_VD: Tensor, targets_S: Tensor) -> Tensor:
    """Without gradients: the logits of a part at a time."""
    parts = zip(x_SD.chunk(CHUNKS), targets_S.chunk(CHUNKS), strict=True)
    return torch.cat([linear_cross_entropy(x, weight_VD, targets) for x, targets in parts])


class LinearCrossEntropy(nn.Module):
    """Logits `x Wᵀ` and the cross-entropy of each target in nats; a module so that it compiles."""

    def forward(self, x_BLD: Tensor, weight_VD: Tensor, targets_BL: Tensor) -> Tensor:
        """Features, readout and target ids → losses `BL`, fp32 under autocast too."""
        path = _ChunkedCrossEntropy.apply if torch.is_grad_enabled() else _by_parts
        losses_S: Tensor = path(x_BLD.flatten(0, 1), weight_VD, targets_BL.flatten())
        return losses_S.view(targets_BL.shape)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """`linear_cross_entropy` with the logits' gradient made in the forward pass, part by part.

    A part's logits are still in the cache when they turn into `softmax - onehot`, which is all
    that backward needs: logits are never held, nor read a second time. The upstream gradient of a
    row scales x and the gradient of x, so that the large matrix need not be touched again.
    """

    @staticmethod
    def forward(ctx: Any, x_SD: Tensor, weight_VD: Tensor, targets_S: Tensor) -> Tensor:
        # int32: comparing int64 ids costs as much as the exponentials.
        ids_V = torch.arange(len(weight_VD), dtype=torch.int32, device=x_SD.device)
        losses, slopes = [], []
        for x, targets in zip(x_SD.chunk(CHUNKS), targets_S.chunk(CHUNKS), strict=True):
            logits = linear(x, weight_VD)
            scores = logits.float()
            top = scores.amax(-1, keepdim=True)
            log_sum = top + (scores - top).exp().sum(-1, keepdim=True).log()
            losses.append((log_sum - scores.gather(1, targets[:, None])).squeeze(1))
            slope = (scores - log_sum).exp() - (ids_V == targets[:, None].int()).float()
            slopes.append(slope.to(logits.dtype))
        ctx.save_for_backward(x_SD, weight_VD, torch.cat(slopes))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *upstream_S: Tensor) -> tuple[Tensor, Tensor, None]:
        x_SD, weight_VD, slope_SV = ctx.saved_tensors
        scale_S1 = upstream_S[0][:, None]
        dtype = slope_SV.dtype
        grad_x_SD = (slope_SV @ weight_VD.to(dtype)).float() * scale_S1
        grad_weight_VD = slope_SV.T @ (x_SD * scale_S1).to(dtype)
        return grad_x_SD.to(x_SD.dtype), grad_weight_VD.to(weight_VD.dtype), None


class LinearSquaredError(nn.Module):
    """Prediction `x Wᵀ` and its mean squared error over the C values of each target."""

    def forward(self, x_BLD: Tensor, weight_CD: Tensor, targets_BLC: Tensor) -> Tensor:
        """Features, readout and target vectors → losses `BL`, fp32 under autocast too."""
        prediction_BLC = linear(x_BLD, weight_CD).float()
        return (prediction_BLC - targets_BLC).square().mean(-1)
