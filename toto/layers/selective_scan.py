"""The selective scan of Mamba (Gu & Dao 2023): a linear recurrence whose rates depend on the input.

    state_t = exp(delta_t · a) · state_(t-1) + delta_t · b_t · u_t
    y_t     = Σ_S c_t · state_t + d · u_t

Three ways to compute it, each a `Scan`: `sequential_scan`, the plain one; `chunked_scan`, in torch
too, fast and short of memory; `kernel_scan`, the CUDA kernel of mamba-ssm. All work in fp32 at
least, and never divide by a product of decays, so nothing overflows.

Axis letters of this module: E the inner channels, S the states of each, C the positions of a chunk.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from toto.layers.chunks import chunk_positions

__all__ = [
    "Scan",
    "chunk_length",
    "chunked_scan",
    "fastest_scan",
    "kernel_scan",
    "selective_scan",
    "sequential_scan",
]

Scan = Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]
]
"""`(u_BLE, delta_BLE, a_ES, b_BLS, c_BLS, d_E, first_BES) → (y_BLE, last_BES)`.

a is negative and delta positive; first is the state before the first position, None for zeros, and
last the state after the last one. y has the dtype of u, last is fp32 (float64 for such a u).
"""

KERNEL_INSTALLED = importlib.util.find_spec("mamba_ssm") is not None

RUN = {"cpu": 1, "cuda": 8}
"""Positions of a chunk that the recurrence first joins, in all runs at once. 1 does the least
arithmetic and 8 takes a third of the operations, each of which is a launch on CUDA."""


def selective_scan(
    u_BLE: Tensor,
    delta_BLE: Tensor,
    a_ES: Tensor,
    b_BLS: Tensor,
    c_BLS: Tensor,
    d_E: Tensor,
    first_BES: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The scan by the fastest path for these tensors: a `Scan`."""
    scan = fastest_scan(u_BLE.device, u_BLE.shape[1])
    return scan(u_BLE, delta_BLE, a_ES, b_BLS, c_BLS, d_E, first_BES)


def fastest_scan(device: torch.device, length: int) -> Scan:
    """For one position, as in decoding, `sequential_scan`: there is nothing to join.

    Else mamba-ssm's kernel on CUDA where that package is installed, and `chunked_scan` elsewhere.
    """
    if length == 1:
        return sequential_scan
    return kernel_scan if device.type == "cuda" and KERNEL_INSTALLED else chunked_scan


def sequential_scan(
    u_BLE: Tensor,
    delta_BLE: Tensor,
    a_ES: Tensor,
    b_BLS: Tensor,
    c_BLS: Tensor,
    d_E: Tensor,
    first_BES: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The plain path, the formula position by position: a `Scan`."""
    dtype = torch.promote_types(u_BLE.dtype, torch.float32)
    u, delta, a, b, c, d = (x.to(dtype) for x in (u_BLE, delta_BLE, a_ES, b_BLS, c_BLS, d_E))
    state_BES = u.new_zeros(len(u), *a.shape) if first_BES is None else first_BES.to(dtype)
    y = []
    for t in range(u.shape[1]):
        decay_BES = (delta[:, t, :, None] * a).exp()
        state_BES = decay_BES * state_BES + (delta[:, t] * u[:, t])[..., None] * b[:, t, None]
        y.append((state_BES * c[:, t, None]).sum(-1) + d * u[:, t])
    return torch.stack(y, dim=1).to(u_BLE.dtype), state_BES


def kernel_scan(
    u_BLE: Tensor,
    delta_BLE: Tensor,
    a_ES: Tensor,
    b_BLS: Tensor,
    c_BLS: Tensor,
    d_E: Tensor,
    first_BES: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """mamba-ssm's CUDA kernel: a `Scan` whose last state has no gradient.

    The kernel begins with zeros; with a first state, which decoding has, `chunked_scan` runs.
    """
    if first_BES is not None:
        return chunked_scan(u_BLE, delta_BLE, a_ES, b_BLS, c_BLS, d_E, first_BES)
    y_BLE, last_BES = _kernel(u_BLE, delta_BLE, a_ES, b_BLS, c_BLS, d_E)
    return y_BLE, last_BES


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _kernel(
    u_BLE: Tensor, delta_BLE: Tensor, a_ES: Tensor, b_BLS: Tensor, c_BLS: Tensor, d_E: Tensor
) -> tuple[Tensor, Tensor]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    # The kernel wants delta, b and c in the dtype of u, and a and d in fp32.
    u, delta, b, c = (x.to(u_BLE.dtype).mT.contiguous() for x in (u_BLE, delta_BLE, b_BLS, c_BLS))
    y_BEL, last_BES = selective_scan_fn(
        u, delta, a_ES.float(), b, c, d_E.float(), return_last_state=True
    )
    return y_BEL.mT, last_BES


def chunked_scan(
    u_BLE: Tensor,
    delta_BLE: Tensor,
    a_ES: Tensor,
    b_BLS: Tensor,
    c_BLS: Tensor,
    d_E: Tensor,
    first_BES: Tensor | None = None,
    *,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Chunk by chunk, all positions of a chunk together but for the recurrence: a `Scan`.

    The states of all positions, S times as many values as u, never stand at once: the backward pass
    has the state at each chunk's begin and computes those of a chunk anew. `chunk` is a chunk's
    number of positions; None takes `chunk_length`.
    """
    dtype = torch.promote_types(u_BLE.dtype, torch.float32)
    u, delta, b, c, d = (x.to(dtype) for x in (u_BLE, delta_BLE, b_BLS, c_BLS, d_E))
    # Powers of two: torch's exp2 takes a quarter of the time of its exp on a CPU.
    rate_SE = (a_ES.to(dtype) * (1 / math.log(2))).mT.contiguous()
    if first_BES is None:
        first_BSE = u.new_zeros(len(u), *rate_SE.shape)
    else:
        first_BSE = first_BES.to(dtype).mT.contiguous()
    size = chunk_length(first_BSE) if chunk is None else chunk
    y_BLE, last_BSE, _ = _scan(u, delta, rate_SE, b, c, first_BSE, size)
    return torch.addcmul(y_BLE, d, u).to(u_BLE.dtype), last_BSE.mT


def chunk_length(state_BSE: Tensor) -> int:
    """Positions of a chunk for states of that shape and device; see `chunk_positions`."""
    return chunk_positions(state_BSE.numel(), state_BSE.shape[1], state_BSE.device.type)


@torch.library.custom_op("toto::selective_scan", mutates_args=())
def _scan(
    u_BLE: Tensor,
    delta_BLE: Tensor,
    rate_SE: Tensor,
    b_BLS: Tensor,
    c_BLS: Tensor,
    first_BSE: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and the state before each chunk; decays are `2^(delta · rate)`."""
    length = u_BLE.shape[1]
    y_BLE = torch.empty_like(u_BLE)
    begins = first_BSE.new_empty(-(-length // chunk), *first_BSE.shape)
    decays, states = first_BSE.new_empty(2, min(chunk, length), *first_BSE.shape).unbind(0)
    last_BSE = first_BSE.clone()
    for index in range(len(begins)):
        begins[index] = last_BSE
        span = slice(index * chunk, (index + 1) * chunk)
        u, delta, b, c = (x[:, span].transpose(0, 1) for x in (u_BLE, delta_BLE, b_BLS, c_BLS))
        decay, state = decays[: len(u)], states[: len(u)]
        _set_decay(decay, delta, rate_SE)
        torch.mul((delta * u)[:, :, None], b[..., None], out=state)
        _recur(decay, state, last_BSE, 1)
        y_BLE[:, span] = torch.matmul(c[:, :, None], state).squeeze(2).transpose(0, 1)
        last_BSE = state[-1].clone()
    return y_BLE, last_BSE, begins


@_scan.register_fake
def _(
    u_BLE: Tensor,
    delta_BLE: Tensor,
    rate_SE: Tensor,
    b_BLS: Tensor,
    c_BLS: Tensor,
    first_BSE: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    begins = first_BSE.new_empty(-(-u_BLE.shape[1] // chunk), *first_BSE.shape)
    return torch.empty_like(u_BLE), torch.empty_like(first_BSE), begins


@torch.library.custom_op("toto::selective_scan_backward", mutates_args=())
def _scan_backward(
    grad_y_BLE: Tensor,
    grad_last_BSE: Tensor,
    u_BLE: Tensor,
    delta_BLE: Tensor,
    rate_SE: Tensor,
    b_BLS: Tensor,
    c_BLS: Tensor,
    begins: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the six tensors that `_scan` takes, from the last chunk to the first."""
    length, shape = u_BLE.shape[1], begins.shape[1:]
    grad_u, grad_delta = torch.empty_like(u_BLE), torch.empty_like(delta_BLE)
    grad_b, grad_c = torch.empty_like(b_BLS), torch.empty_like(c_BLS)
    grad_rate_SE = torch.zeros_like(rate_SE)
    buffers = begins.new_empty(4, min(chunk, length) + 1, *shape).unbind(0)
    # Of the position after the chunk: its decay, and the gradient that reaches its state.
    next_decay_BSE, next_grad_BSE = torch.ones_like(grad_last_BSE), grad_last_BSE
    for index in reversed(range(len(begins))):
        span = slice(index * chunk, (index + 1) * chunk)
        u, delta, b, c, grad_y = (
            x[:, span].transpose(0, 1) for x in (u_BLE, delta_BLE, b_BLS, c_BLS, grad_y_BLE)
        )
        size = len(u)
        decays, states, grads, scratch = (buffer[: size + 1] for buffer in buffers)
        decay, before, state = decays[:-1], states[:-1], states[1:]
        grad, product = grads[:-1], scratch[:-1]
        driven = (delta * u)[:, :, None]
        _set_decay(decay, delta, rate_SE)
        decays[size] = next_decay_BSE
        states[0] = begins[index]
        torch.mul(driven, b[..., None], out=state)
        _recur(decay, state, states[0], 1)
        torch.mul(grad_y[:, :, None], c[..., None], out=grad)
        _recur(decays[1:], grad, next_grad_BSE, -1)
        next_decay_BSE, next_grad_BSE = decay[0].clone(), grad[0].clone()

        grad_c[:, span] = torch.mul(state, grad_y[:, :, None], out=product).sum(3).transpose(0, 1)
        grad_b[:, span] = torch.mul(grad, driven, out=product).sum(3).transpose(0, 1)
        grad_driven = torch.matmul(b[:, :, None], grad).squeeze(2)
        # From here on the gradient of each decay's exponent, delta · rate.
        exponent = decay.mul_(before).mul_(grad).mul_(math.log(2))
        to_delta = torch.mul(exponent, rate_SE, out=product).sum(2)
        grad_delta[:, span] = torch.addcmul(to_delta, grad_driven, u).transpose(0, 1)
        grad_u[:, span] = (grad_driven * delta).transpose(0, 1)
        grad_rate_SE += torch.mul(exponent, delta[:, :, None], out=product).sum((0, 1))
    return grad_u, grad_delta, grad_rate_SE, grad_b, grad_c, next_decay_BSE * next_grad_BSE


@_scan_backward.register_fake
def _(
    grad_y_BLE: Tensor,
    grad_last_BSE: Tensor,
    u_BLE: Tensor,
    delta_BLE: Tensor,
    rate_SE: Tensor,
    b_BLS: Tensor,
    c_BLS: Tensor,
    begins: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (u_BLE, delta_BLE, rate_SE, b_BLS, c_BLS, grad_last_BSE)
    u, delta, rate, b, c, first = (torch.empty_like(x) for x in inputs)
    return u, delta, rate, b, c, first


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, chunk = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.chunk = chunk


def _differentiate(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
    grad_y, grad_last, _ = upstream
    return *_scan_backward(grad_y, grad_last, *ctx.saved_tensors, ctx.chunk), None


_scan.register_autograd(_differentiate, setup_context=_keep_for_backward)
for _device in ("cpu", "cuda"):  # or autocast would lower the matrix products inside
    _scan.register_autocast(_device, torch.float32)
    _scan_backward.register_autocast(_device, torch.float32)


def _set_decay(decay_CBSE: Tensor, delta_CBE: Tensor, rate_SE: Tensor) -> None:
    torch.mul(delta_CBE[:, :, None], rate_SE, out=decay_CBSE).exp2_()


def _recur(decay_CBSE: Tensor, x_CBSE: Tensor, carry_BSE: Tensor, step: int) -> None:
    """`x_t += decay_t · x_(t-step)` in place, position by position; `step` is 1 or -1.

    Two levels: first within runs of neighbouring positions, all runs at once, together with the
    decay over each run so far; then run after run. Runs of one leave the second level alone.

    Args:
        decay_CBSE: at most 1.
        x_CBSE: what comes in, then the states.
        carry_BSE: the state before the first position, as `step` goes.
        step: 1 from the first position to the last, -1 from the last to the first.
    """
    run = math.gcd(len(x_CBSE), RUN[x_CBSE.device.type])
    x, decay = (tensor.view(-1, run, *tensor.shape[1:]) for tensor in (x_CBSE, decay_CBSE))
    order = range(run)[::step]
    if run > 1:
        decay = decay.clone()
        for before, now in pairwise(order):
            x[:, now].addcmul_(decay[:, now], x[:, before])
            decay[:, now].mul_(decay[:, before])
    ends = x[:, order[-1]].unbind(0)
    for one_decay, one, end in list(zip(decay.unbind(0), x.unbind(0), ends, strict=True))[::step]:
        one.addcmul_(one_decay, carry_BSE)
        carry_BSE = end
