"""toto: autoregressive pre-training on images and video, by next-token prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toto.loaded import load

__version__ = "0.1.0.dev0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`toto.load`, which imports torch, only once it is asked for."""
    if name == "load":
        from toto.loaded import load

        return load
    raise AttributeError(f"module 'toto' has no attribute {name!r}")
