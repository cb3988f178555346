"""What a block keeps in memory for its backward pass, by arithmetic on its Config. No torch here.

Each list goes through the block's forward pass and names what autograd saves there; tests hold the
sums to what torch's hooks count on the real blocks. Under autocast a product saves a bf16 copy of
what goes in and of its matrix; norms, rotations, the scan and the residual stream stay fp32.
torch.compile leaves out what it can make anew without a product, and keeps products in its place.

Axis letters: B batch, L positions, D width, N heads, M = G · K values of all key heads, F hidden
values of an MLP, E inner channels, S states, R rank of the step sizes, C positions of a chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from toto.layers.chunks import chunk_positions

if TYPE_CHECKING:
    from toto.backbones.config import Gpt2Config, LlamaConfig, MambaConfig

__all__ = ["BlockMemory", "Kept", "Pass", "gpt2_block", "llama_block", "mamba_block"]

FP32 = 4


@dataclass(frozen=True)
class Pass:
    """A micro-batch on its way through a model: what its memory depends on.

    Attributes:
        batch: B, sequences.
        length: L, positions of each.
        precision: of the matrix products.
        device: where it runs.
        compiled: by block, as `training.compile` has it.
    """

    batch: int
    length: int
    precision: Literal["fp32", "bf16"]
    device: Literal["cpu", "cuda"]
    compiled: bool

    @property
    def positions(self) -> int:
        """B · L."""
        return self.batch * self.length

    @property
    def product_bytes(self) -> int:
        """Of a value that goes into a matrix product or comes out of one."""
        return 2 if self.precision == "bf16" else FP32


class Kept(NamedTuple):
    """Tensors in memory.

    Attributes:
        what: they are.
        formula: of the number of values, in the letters of the module.
        values: their number.
        size: bytes of a value.
    """

    what: str
    formula: str
    values: int
    size: int

    @property
    def bytes(self) -> int:
        """Of all values."""
        return self.values * self.size


@dataclass(frozen=True)
class BlockMemory:
    """Of one block and one micro-batch.

    Attributes:
        entry: what goes into the block: all that recomputation keeps.
        inside: what else is kept from the forward pass to the backward pass.
        matrices: bf16 copies of the block's matrices, kept likewise where weights are fp32.
        last_norm: what is kept around the norm after the last block.
        working: at the highest moment of the backward pass, beyond what is still kept then.
    """

    entry: Kept
    inside: tuple[Kept, ...]
    matrices: Kept
    last_norm: Kept
    working: tuple[Kept, ...]

    @property
    def inside_bytes(self) -> int:
        """Of all that recomputation makes anew."""
        return sum(kept.bytes for kept in self.inside)

    @property
    def working_bytes(self) -> int:
        """Of all that the backward pass adds."""
        return sum(kept.bytes for kept in self.working)


class _Block:
    """Writes down entries of a block whose sizes are these, by their letters."""

    def __init__(self, one: Pass, matrix_params: int, **sizes: int) -> None:
        self._one = one
        self._sizes = sizes
        self.entry = self.each("the block's input", FP32, D=1)
        copies = matrix_params if one.precision == "bf16" else 0
        self.matrices = Kept("bf16 copies of the matrices", "their values", copies, 2)

    def each(self, what: str, size: int, ones: int = 0, **counts: int) -> Kept:
        """So many of each letter, and of single values, at every position."""
        values = ones + sum(count * self._sizes[letter] for letter, count in counts.items())
        terms = [f"{count}·{letter}" if count > 1 else letter for letter, count in counts.items()]
        terms += [str(ones)] if ones else []
        each_position = terms[0] if len(terms) == 1 else f"({' + '.join(terms)})"
        formula = f"B·L·{each_position}"
        return Kept(what, formula, self._one.positions * values, size)

    def rms_norm(self) -> Kept:
        """What the last norm takes and gives; eager it keeps what it gives before the gain, too."""
        return self.each("around the last norm", FP32, D=2 if self._one.compiled else 3)


def llama_block(config: LlamaConfig, one: Pass) -> BlockMemory:
    """RMSNorm, rotary attention and SwiGLU."""
    half = one.product_bytes
    block = _Block(
        one,
        config.matrix_params,
        D=config.width,
        N=config.num_heads,
        M=config.num_kv_heads * config.head_dim,
        F=config.ffn_dim,
    )
    eager = (
        block.each("residual stream between attention and MLP", FP32, D=1),
        block.each("two norms before their gains", FP32, D=2),
        block.each("silu(gate)", half, F=1),
    )
    inside = (
        *((block.each("attention's output", half, D=1),) if one.compiled else eager),
        block.each("inverse deviations of two norms", FP32, ones=2),
        block.each("what goes into query, key, value and into gate, up", half, D=2),
        block.each("query, key and value", half, D=1, M=2),
        block.each("query and key, rotated", half, D=1, M=1),
        *_scaled_query(config, block, half),
        block.each("what attention mixed", half, D=1),
        block.each("log-sum-exp of the scores", FP32, N=1),
        block.each("gate and up, and the product of silu(gate) and up", half, F=3),
    )
    working = (
        block.each("gradients inside the SwiGLU", half, F=2),
        block.each("gradient of the residual stream", FP32, D=1),
    )
    return BlockMemory(block.entry, inside, block.matrices, block.rms_norm(), working)


def gpt2_block(config: Gpt2Config, one: Pass) -> BlockMemory:
    """LayerNorm, attention and a GELU MLP."""
    half = one.product_bytes
    block = _Block(one, config.matrix_params, D=config.width, N=config.num_heads, F=config.ffn_dim)
    between = block.each("residual stream between attention and MLP", FP32, D=1)
    inside = (
        block.each("attention's output", half, D=1) if one.compiled else between,
        block.each("means and deviations of two norms", FP32, ones=4),
        block.each("what goes into query, key, value and into the MLP", half, D=2),
        block.each("query, key and value", half, D=3),
        *_scaled_query(config, block, half),
        block.each("what attention mixed", half, D=1),
        block.each("log-sum-exp of the scores", FP32, N=1),
        block.each("the MLP before and after its GELU", half, F=2),
    )
    working = (
        block.each("gradient inside the MLP", half, F=1),
        block.each("gradient of the residual stream", FP32, D=1),
    )
    last_norm = block.each("around the last norm", FP32, D=2)
    return BlockMemory(block.entry, inside, block.matrices, last_norm, working)


def mamba_block(config: MambaConfig, one: Pass) -> BlockMemory:
    """Convolution, selective scan chunk by chunk, and gate."""
    half = one.product_bytes
    inner, states = config.inner_width, config.state_size
    block = _Block(one, config.matrix_params, D=config.width, E=inner, S=states, R=config.dt_rank)
    state = one.batch * states * inner
    chunk = chunk_positions(state, states, one.device)
    copies = (
        block.each("bf16 copy of what goes into b, c and the step", half, E=1),
        block.each("fp32 copies of b and c", FP32, S=2),
    )
    eager = (
        block.each("the norm before its gain", FP32, D=1),
        block.each("the convolution before its silu", FP32, E=1),
        block.each("the step before its softplus", FP32, E=1),
        block.each("silu(gate)", half, E=1),
    )
    inside = (
        *((block.each("the step's product", half, E=1),) if one.compiled else eager),
        block.each("inverse deviation of the norm deviation", FP32, ones=1),
        block.each("what goes into scan and gate", half, D=1),
        block.each("scan and gate", half, E=2),
        block.each("what the convolution reads", half, E=1),
        block.each("silu of the convolution", FP32, E=1),
        block.each("the step's rank, b and c", half, R=1, S=2),
        *(copies if one.precision == "bf16" else ()),
        block.each("the step", FP32, E=1),
        Kept("state at each chunk's begin", "B·S·E·⌈L/C⌉", state * -(-one.length // chunk), FP32),
        Kept("rates of decay", "2·S·E", 2 * states * inner, FP32),
        block.each("what the scan gives", FP32, E=1),
        block.each("its product with silu(gate)", half, E=1),
    )
    # On CUDA the recurrence goes in runs, beside a copy of the decays. What made the gate is gone
    # by then, which weighs one E more in fp32.
    buffers = 4 if one.device == "cpu" else 5
    buffered = buffers * state * (min(chunk, one.length) + 1)
    working = (
        Kept("buffers of a chunk's states", f"{buffers}·B·S·E·(C + 1)", buffered, FP32),
        block.each("gradients of the scan", FP32, E=2 if half < FP32 else 1, S=2),
        block.each("gradient of the residual stream", FP32, D=1),
    )
    return BlockMemory(block.entry, inside, block.matrices, block.rms_norm(), working)


def _scaled_query(config: LlamaConfig | Gpt2Config, block: _Block, half: int) -> tuple[Kept, ...]:
    """Under µP queries are multiplied by √64 / √K, which makes another tensor of them."""
    head_dim = config.width // config.num_heads
    if config.mup_base_width is None or math.isclose(head_dim, 64):
        return ()
    return (block.each("query, scaled", half, D=1),)
