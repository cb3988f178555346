"""What every backbone of toto's is: blocks one after another, and a norm."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from toto.backbones.base import Backbone, Cache, ParamRole, resolve_layers
from toto.layers.attention import SelfAttention, fastest_attention
from toto.layers.cache import KeyValues
from toto.layers.masks import (
    CAUSAL,
    Mask,
    Visibility,
    compiled_visibility,
    plain_visibility,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from toto.backbones.config import BackboneConfig
    from toto.layers.rope import Rotation

__all__ = ["AttentionBlock", "Block", "BlockStack", "Context", "hidden_std", "residual_std"]

INIT_STD = 0.02

See = Callable[[Mask, int, int, torch.device], Visibility]
"""A mask, the first new position, the length and the device → who reads whom."""


def hidden_std(config: BackboneConfig) -> float:
    """Of fresh matrices: 0.02, under µP over √m."""
    return INIT_STD / math.sqrt(config.width_ratio)


def residual_std(config: BackboneConfig) -> float:
    """Of those that write to the residual stream: its variance shall not grow with depth."""
    return hidden_std(config) / math.sqrt(2 * config.num_layers)


class Context(NamedTuple):
    """What all blocks share in one pass.

    Attributes:
        visibility: whom each position reads.
        rotation: of the positions; None without rotary ones.
    """

    visibility: Visibility
    rotation: Rotation | None = None


class Block(nn.Module):
    """A layer of the stack: residual inside.

    Attributes:
        drop_rate: how often, in training mode, a sample goes without a branch of the block.
    """

    drop_rate = 0.0

    def drop_path(self, branch_BLD: Tensor) -> Tensor:
        """Leave a residual branch out for some samples, and scale it up for the others.

        Stochastic depth (Huang et al. 2016), as timm and MAE have it: each branch on its own, so
        that a block may lose its attention and keep its MLP. Without a rate nothing is drawn.
        """
        if not self.training or not self.drop_rate:
            return branch_BLD
        kept = 1 - self.drop_rate
        weight_B = torch.rand(len(branch_BLD), device=branch_BLD.device).lt(kept) / kept
        return branch_BLD * weight_B[:, None, None]

    @abstractmethod
    def forward(self, x_BLD: Tensor, context: Context, kept: Any = None) -> Tensor:
        """`BLD` → `BLD`; `kept`, of `keep`, holds the positions before and takes these in."""

    @abstractmethod
    def keep(self, length: int) -> Any:
        """What the layer keeps of at most `length` positions, empty."""


class AttentionBlock(Block):
    """Attention, then an MLP, each on a normalised copy of the residual stream."""

    attention_norm: nn.Module
    attention: SelfAttention
    mlp_norm: nn.Module
    mlp: nn.Module

    def forward(self, x_BLD: Tensor, context: Context, kept: KeyValues | None = None) -> Tensor:
        """See `Block.forward`."""
        mixed_BLD = self.attention(self.attention_norm(x_BLD), *context, kept)
        x_BLD = x_BLD + self.drop_path(mixed_BLD)
        out_BLD: Tensor = x_BLD + self.drop_path(self.mlp(self.mlp_norm(x_BLD)))
        return out_BLD

    def keep(self, length: int) -> KeyValues:
        """See `Block.keep`."""
        return KeyValues(length)


class BlockCache(Cache):
    """The cache of a stack: what each block keeps."""

    def __init__(self, length: int, mask: Mask, blocks: Sequence[Block]) -> None:
        super().__init__(length, mask)
        self.kept = [block.keep(length) for block in blocks]


class BlockStack(Backbone):
    """Blocks and a last norm.

    Args:
        config: sizes.
        blocks: in order.
        norm: after the last one.
    """

    def __init__(self, config: BackboneConfig, blocks: Sequence[Block], norm: nn.Module) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self._recomputes = False
        self.visibility: See = plain_visibility

    @abstractmethod
    def enter(self, x_BLD: Tensor, first: int, mask: Mask) -> tuple[Tensor, Context]:
        """Embedded positions from `first` on → the input of block 1, and what all blocks share."""

    def forward(self, x_BLD: Tensor, mask: Mask = CAUSAL) -> Tensor:
        """See `Backbone.forward`."""
        last_BLD, _ = self._walk(x_BLD, self.config.num_layers, set(), mask)
        out_BLD: Tensor = self.norm(last_BLD)
        return out_BLD

    def features(
        self, x_BLD: Tensor, layers: Sequence[int], mask: Mask = CAUSAL
    ) -> dict[int, Tensor]:
        """See `Backbone.features`."""
        resolved = resolve_layers(layers, self.config.num_layers)
        wanted = set(resolved.values())
        _, found = self._walk(x_BLD, max(wanted, default=0), wanted, mask)
        return {layer: found[index] for layer, index in resolved.items()}

    def forward_with_features(
        self, x_BLD: Tensor, layers: Sequence[int], mask: Mask = CAUSAL
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """See `Backbone.forward_with_features`: every block once."""
        resolved = resolve_layers(layers, self.config.num_layers)
        wanted = set(resolved.values())
        last_BLD, found = self._walk(x_BLD, self.config.num_layers, wanted, mask)
        return self.norm(last_BLD), {layer: found[index] for layer, index in resolved.items()}

    def _walk(
        self, x_BLD: Tensor, top: int, wanted: set[int], mask: Mask
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """What stands after block `top`, and after each wanted one on the way."""
        found = {0: x_BLD}
        x_BLD, context = self.enter(x_BLD, 0, mask)
        for index in range(1, top + 1):
            x_BLD = self._run(index, x_BLD, context)
            if index in wanted:
                found[index] = x_BLD
        return x_BLD, found

    def new_cache(self, length: int, mask: Mask = CAUSAL) -> Cache:
        """See `Backbone.new_cache`."""
        super().new_cache(length, mask)
        return BlockCache(length, mask, list(self._blocks()))

    def extend(self, x_BLD: Tensor, cache: Cache) -> Tensor:
        """See `Backbone.extend`: only the new positions are computed."""
        assert isinstance(cache, BlockCache), "a cache of this backbone's new_cache"
        x_BLD, context = self.enter(x_BLD, cache.filled, cache.mask)
        cache.filled += x_BLD.shape[1]
        for block, kept in zip(self.blocks, cache.kept, strict=True):
            x_BLD = block(x_BLD, context, kept)
        out_BLD: Tensor = self.norm(x_BLD)
        return out_BLD

    def param_roles(self) -> dict[str, ParamRole]:
        """Vectors, the gains of norms and biases, are `norm`, every matrix is `hidden`."""
        return {
            name: "norm" if parameter.ndim == 1 else "hidden"
            for name, parameter in self.named_parameters()
        }

    def param_layers(self) -> dict[str, int]:
        """See `Backbone.param_layers`."""
        top = self.config.num_layers + 1
        return {
            name: int(name.split(".")[1]) + 1 if name.startswith("blocks.") else top
            for name, _ in self.named_parameters()
        }

    def compile_blocks(self) -> None:
        """See `Backbone.compile_blocks`; attention takes the fastest path of this machine."""
        # Shapes stay fixed: a graph for any batch size, made when a second size appears, would
        # round otherwise than the first, and a resumed run would not repeat the unbroken one.
        for module in self.modules():
            if isinstance(module, SelfAttention):
                module.attend = fastest_attention()
        self.visibility = compiled_visibility
        for block in self.blocks:
            block.compile(dynamic=False)
        self.norm.compile(dynamic=False)

    def recompute_activations(self) -> None:
        """See `Backbone.recompute_activations`."""
        self._recomputes = True

    def drop_paths(self, rate: float) -> None:
        """Set the rate of each block's branches, from 0 to `rate` in equal steps."""
        for index, block in enumerate(self._blocks()):
            block.drop_rate = rate * index / max(self.config.num_layers - 1, 1)

    def _run(self, index: int, x_BLD: Tensor, context: Context) -> Tensor:
        """Run block `index`, from 1."""
        block = self.blocks[index - 1]
        out_BLD: Tensor
        if self._recomputes and torch.is_grad_enabled():
            out_BLD = checkpoint(block, x_BLD, context, use_reentrant=False)
        else:
            out_BLD = block(x_BLD, context)
        return out_BLD

    def _blocks(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block
