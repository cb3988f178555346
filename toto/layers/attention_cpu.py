"""Causal attention in bf16 on CPUs with AMX: torch's forward pass, our own backward pass.

Of a compiled training step on such a CPU half is attention, most of it torch's backward kernel.
`attention_cpu.cpp` takes about a third of its time and is closer to fp32. It is built once by the
C++ compiler that torch.compile needs anyway.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["CpuAttention", "kernel", "kernel_is_supported"]

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ["-O3", "-std=c++20", "-shared", "-fPIC", "-fopenmp"]
FLAGS += [f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "bf16")]


def kernel_is_supported() -> bool:
    """Whether this is a CPU that the kernel can run on."""
    return torch.cpu._is_amx_tile_supported() and torch.cpu._is_avx512_bf16_supported()


@cache
def kernel() -> ctypes.CDLL | None:
    """The built kernel, from the user's cache folder after the first time.

    Returns:
        None, with a warning that says why, if the compiler is missing or fails: attention is then
        torch's alone, slower and otherwise the same.
    """
    compiler = os.environ.get("CXX", "c++")
    key = f"{SOURCE.read_text(encoding='utf-8')}{torch.__version__}{compiler}{FLAGS}"
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    library = Path(cache_home, "toto", f"attention_cpu-{digest}.so")
    try:
        if not library.is_file():
            _build(compiler, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or error
        warnings.warn(
            f"CPU attention runs without its own kernel, which could not be built: {reason}",
            stacklevel=2,
        )
        return None


def _build(compiler: str, library: Path) -> None:
    """Compile under another name and rename, so that a killed build leaves nothing behind."""
    torch_folder = Path(torch.__file__).parent
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder, library.name)
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(built)]
        command += [f"-I{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}"]
        command += ["-ltorch_cpu", "-lc10"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        os.replace(built, library)


class CpuAttention(torch.autograd.Function):
    """`CpuAttention.apply(query, key, value)`: causal attention of bf16 `BNLK` tensors on a CPU."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Torch's flash kernel, which also gives each row's log-sum-exp."""
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, True
        )
        ctx.save_for_backward(query, key, value, out, log_sum)
        mixed: Tensor = out
        return mixed

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Our kernel, from the saved output and log-sum-exp."""
        query, key, value, out, log_sum = ctx.saved_tensors
        grads: tuple[Tensor, Tensor, Tensor]
        grads = _backward(query, key, value, out, grad[0], log_sum)
        return grads


@torch.library.custom_op(
    "toto::cpu_attention_backward",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor out, Tensor grad, Tensor log_sum)"
    " -> (Tensor, Tensor, Tensor)",
)
def _backward(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, grad: Tensor, log_sum: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = [x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value, out, grad)]
    grads = _empty_grads(query)
    tensors = [*inputs, log_sum, *grads]
    data = (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))
    strides = [stride for x in tensors for stride in x.stride()[:3]]
    library = kernel()
    assert library is not None, "CpuAttention is used only where kernel() was built"
    library.toto_causal_attention_backward(
        data, (ctypes.c_int64 * len(strides))(*strides), (ctypes.c_int64 * 4)(*query.shape)
    )
    return grads


@_backward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, grad: Tensor, log_sum: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_grads(query)


def _empty_grads(query_BNLK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three of the query's shape, laid out BLNK as the product that made it expects."""
    B, N, L, K = query_BNLK.shape
    query, key, value = (query_BNLK.new_empty(B, L, N, K).transpose(1, 2) for _ in range(3))
    return query, key, value
