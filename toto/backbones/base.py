"""The contract of a backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toto.backbones.config import BackboneConfig

__all__ = ["Backbone", "ParamRole", "resolve_layers"]

ParamRole = Literal["embed", "hidden", "readout", "norm"]
"""What a parameter is for: decides weight decay, and later µP and layer decay."""


class Backbone(nn.Module, ABC):
    """A causal map of embedded sequences: the output at t depends on inputs 0..t alone."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, x_BLD: Tensor) -> Tensor:
        """All blocks and the last norm: `BLD` → `BLD`."""

    @abstractmethod
    def features(self, x_BLD: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """What stands after each of `layers`, as `{layer: BLD}`, without the last norm.

        Layer 0 is the embedding, k the output of block k; negatives count from the end (-1 is the
        last block). Computation stops after the highest layer. Keys are as they were asked for.

        Raises:
            ValueError: a layer outside -L-1..L.
        """

    @abstractmethod
    def param_roles(self) -> dict[str, ParamRole]:
        """The role of every parameter, by its name in `named_parameters()`."""

    def compile_blocks(self) -> None:
        """Compile in place, block by block; the names in `state_dict()` stay. Default: eager.

        Compiling a whole model is not deterministic on CPU, block by block is.
        """
        return


def resolve_layers(layers: Sequence[int], num_layers: int) -> dict[int, int]:
    """Asked-for layer → layer in 0..num_layers.

    Raises:
        ValueError: a layer outside -num_layers-1..num_layers.
    """
    resolved = {}
    for layer in layers:
        index = layer if layer >= 0 else num_layers + 1 + layer
        if not 0 <= index <= num_layers:
            raise ValueError(f"layer {layer} does not exist: there are 0..{num_layers}")
        resolved[layer] = index
    return resolved
