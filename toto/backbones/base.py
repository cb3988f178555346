"""The contract of a backbone."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from toto.errors import UserError
from toto.layers.masks import CAUSAL, FULL, Mask
from toto.registry import Implementation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toto.backbones.config import BackboneConfig

__all__ = ["PARAM_ROLES", "Backbone", "Cache", "ParamRole", "resolve_layers"]

ParamRole = Literal["embed", "hidden", "filter", "readout", "norm", "probe"]
"""What a parameter is for: decides weight decay, µP's rates and clipping.

- `embed`: maps ids or codes to vectors; no weight decay.
- `hidden`: a matrix that grows with the width on both axes; decays; µP divides its rate.
- `filter`: a matrix that grows with the width on one axis (a convolution of each channel, the
  embedding of patches); decays.
- `readout`: maps vectors to what is predicted; decays.
- `norm`: gains, biases and whatever else is no factor of a product; no weight decay.
- `probe`: learns from features that carry no gradient back, at its own rate; it has no part in the
  norm that gradients are clipped to.
"""

PARAM_ROLES: tuple[ParamRole, ...] = get_args(ParamRole)
"""All roles; any other is refused, since no group of the optimizer would train its parameters."""


class Cache:
    """What a backbone keeps of the positions that `extend` has seen.

    Args:
        length: the most positions that it will hold.
        mask: who reads whom.

    Attributes:
        filled: positions seen so far.
        inputs_BLD: the inputs themselves, for backbones that keep nothing better.
    """

    def __init__(self, length: int, mask: Mask) -> None:
        self.length = length
        self.mask = mask
        self.filled = 0
        self.inputs_BLD: Tensor | None = None


class Backbone(nn.Module, Implementation):
    """A map of embedded sequences. With the causal mask the output at t depends on 0..t alone."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, x_BLD: Tensor, mask: Mask = CAUSAL) -> Tensor:
        """All blocks and the last norm: `BLD` → `BLD`.

        `mask` is one of those that `config.masks` names.
        """

    @abstractmethod
    def features(
        self, x_BLD: Tensor, layers: Sequence[int], mask: Mask = CAUSAL
    ) -> dict[int, Tensor]:
        """What stands after each of `layers`, as `{layer: BLD}`, without the last norm.

        Layer 0 is the embedding, k the output of block k; negatives count from the end (-1 is the
        last block). Computation stops after the highest layer. Keys are as they were asked for.

        Raises:
            ValueError: a layer outside -L-1..L.
        """

    @abstractmethod
    def param_roles(self) -> dict[str, ParamRole]:
        """The role of every parameter, by its name in `named_parameters()`."""

    def forward_with_features(
        self, x_BLD: Tensor, layers: Sequence[int], mask: Mask = CAUSAL
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """What `forward` and `features` give. This plain path computes the blocks twice."""
        return self.forward(x_BLD, mask), self.features(x_BLD, layers, mask)

    def param_layers(self) -> dict[str, int]:
        """The layer of every parameter, by its name: k of block k, L + 1 after the last block.

        Raises:
            UserError: the backbone does not say; the default.
        """
        raise UserError(
            f"optimizer.layer_decay: backbone {self.config.registered_name} does not say which "
            "layers its parameters belong to. Write 1, or give it param_layers()"
        )

    def new_cache(self, length: int, mask: Mask = CAUSAL) -> Cache:
        """An empty cache for `extend`, of at most `length` positions.

        Raises:
            ValueError: under this mask every new position changes what came before.
        """
        if mask == FULL:
            raise ValueError("under full attention every new position changes all outputs")
        return Cache(length, mask)

    def extend(self, x_BLD: Tensor, cache: Cache) -> Tensor:
        """The last `x_BLD.shape[1]` outputs of `forward` over all positions seen so far.

        This plain path keeps the inputs and computes all of it anew.

        Raises:
            ValueError: more positions than the cache holds.
        """
        seen = [] if cache.inputs_BLD is None else [cache.inputs_BLD]
        cache.inputs_BLD = torch.cat([*seen, x_BLD], dim=1)
        cache.filled = cache.inputs_BLD.shape[1]
        if cache.filled > cache.length:
            raise ValueError(f"{cache.filled} positions, and the cache holds {cache.length}")
        return self.forward(cache.inputs_BLD, cache.mask)[:, -x_BLD.shape[1] :]

    def compile_blocks(self) -> None:
        """Compile in place, block by block; the names in `state_dict()` stay. Default: eager.

        Compiling a whole model is not deterministic on CPU, block by block is.
        """
        return

    def recompute_activations(self) -> None:
        """Keep only the inputs of blocks for the backward pass.

        Raises:
            UserError: the backbone cannot; the default.
        """
        raise UserError(
            f"training.recompute: backbone {self.config.registered_name} keeps all it computes. "
            "Write false, or lower training.micro_batch"
        )

    def drop_paths(self, rate: float) -> None:
        """In training mode, leave branches of blocks out at random (stochastic depth).

        Each residual branch is left out on its own, as timm and MAE do (Huang et al. 2016).

        Args:
            rate: 0 to below 1, of the last block; those before it have less, the first one 0.

        Raises:
            UserError: the backbone cannot; the default.
        """
        raise UserError(
            f"task.drop_path: backbone {self.config.registered_name} leaves no block out. Write 0"
        )


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
