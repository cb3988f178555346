"""What this machine can do: `auto` in a recipe becomes a device, a precision, compiled or not."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import resource
import shutil
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import toto
from toto.errors import UserError

if TYPE_CHECKING:
    from toto.training.config import TrainingConfig

__all__ = ["code_fingerprint", "peak_memory", "resolve_machine", "versions"]


def resolve_machine(
    training: TrainingConfig, *, world: int = 1
) -> tuple[TrainingConfig, list[str]]:
    """Settle device, precision, engine and compile before a run, and say what is unexpected.

    Args:
        training: of the recipe.
        world: number of ranks.

    Returns:
        The config with nothing left at `auto`, and sentences to print.

    Raises:
        UserError: the recipe asks for CUDA and there is none, or for an engine that does not run
            on so many ranks, or is not installed.
    """
    notes = []
    device = training.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "training.device: this torch finds no CUDA device. Write auto or cpu, or install a "
            "CUDA build of torch and check that `nvidia-smi` lists the GPU"
        )
    native = _has_bf16(device)
    precision = training.precision
    if precision == "auto":
        precision = "bf16" if native else "fp32"
    elif precision == "bf16" and not native:
        notes.append(f"training.precision: this {device} computes bf16 by emulation, which is slow")
    compiled = training.compile
    if compiled and device == "cpu" and (missing := _missing_for_compile()):
        compiled = False
        notes.append(f"training.compile: off, because {missing}; the run is slower")
    resolved = training.model_copy(
        update={
            "device": device,
            "precision": precision,
            "compile": compiled,
            "engine": _settled_engine(training.engine, world),
        }
    )
    return resolved, notes


def _settled_engine(engine: str, world: int) -> str:
    if engine == "auto":
        engine = "local" if world == 1 else "deepspeed"
    if engine == "local" and world > 1:
        raise UserError(
            f"training.engine: local is one process, and {world} ranks were started. Write auto or "
            "deepspeed, or start one process"
        )
    if engine == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        raise UserError("training.engine: deepspeed is not installed: pip install deepspeed")
    return engine


def peak_memory(device: str) -> int:
    """The most bytes in use so far: tensors on a CUDA device; else this process, RAM resident."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str | int]:
    """What a result depends on besides its recipe; a package that is not there has no entry."""
    return {
        "toto": toto.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **_installed("deepspeed"),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "threads": torch.get_num_threads(),
    }


def code_fingerprint() -> str:
    """A hash of the Python files of toto as they are installed here, edits included."""
    root = Path(toto.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _installed(package: str) -> dict[str, str]:
    """Its version, without importing it."""
    try:
        return {package: version(package)}
    except PackageNotFoundError:
        return {}


def _has_bf16(device: str) -> bool:
    """Whether the device multiplies bf16 itself.

    A CPU does by AVX512_BF16, which every CPU with AMX has too. Without it torch computes bf16
    by conversion, slower than fp32, so `torch.backends.cpu.get_cpu_capability()` ("AVX512") and
    oneDNN's own check do not tell; torch shows cpuinfo's answer under a private name only.
    """
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())


def _missing_for_compile() -> str | None:
    """What torch.compile lacks to build its C++ kernels, or None."""
    # As torch inductor chooses it (torch._inductor.config.cpp.cxx).
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX", default)
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler}; the variable CXX names another)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Python's headers are not installed (on Debian the package python3-dev)"
    return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
