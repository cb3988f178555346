"""The parts of a training step's memory that follow from model and micro-batch. No torch here.

Letters of the formulas: P parameters, R GPUs, n blocks, S = B · L rows of the readout, V logits of
a row, and those of `toto.backbones.memory`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from toto.backbones.config import PATCH_MLP_RATIO
from toto.training.config import DeepSpeedConfig

if TYPE_CHECKING:
    from toto.backbones.config import BackboneConfig
    from toto.backbones.memory import BlockMemory, Kept, Pass
    from toto.model_size import ModelSize

__all__ = [
    "COLUMNS",
    "FP32",
    "Frozen",
    "Load",
    "Term",
    "block_backward",
    "embedding_backward",
    "first_block",
    "kept",
    "loss_backward",
    "loss_forward",
    "matrix_copies",
    "readout_gradient",
    "tokenizing",
]

COLUMNS = ("weights", "gradients", "optimizer", "activations", "loss", "buckets", "tokenizer")

FP32 = 4
CHUNKS = 16
"""Parts in which `layers.loss.LinearCrossEntropy` scores rows."""

BACKBONE = "backbones/memory.py"
LOSS = "layers/loss.py"
EMBEDDING = "torch's embedding"
AUTOCAST = "torch's autocast"


@dataclass(frozen=True)
class Frozen:
    """Tokenizers beside the model.

    Attributes:
        params: of all of them, fp32.
        encode_bytes: the most that encoding a micro-batch takes; 0 where the data are tokens.
    """

    params: int = 0
    encode_bytes: int = 0


@dataclass(frozen=True)
class Load:
    """What a GPU has to hold, however the training is spread.

    Attributes:
        size: of the model.
        backbone: its Config.
        block: what a block keeps of a micro-batch.
        one: the micro-batch.
        targets: of a sequence.
        micro_batches: of a step.
        gpus: R, all of them.
        patch_dim: C of patch inputs; 0 for codes.
        target_dim: C of patch targets; 0 for codes.
        frozen: tokenizers.
        deepspeed: sizes of its buffers.
    """

    size: ModelSize
    backbone: BackboneConfig
    block: BlockMemory
    one: Pass
    targets: int
    micro_batches: int = 1
    gpus: int = 1
    patch_dim: int = 0
    target_dim: int = 0
    frozen: Frozen = Frozen()
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)

    @property
    def rows(self) -> int:
        """S, targets of a micro-batch."""
        return self.one.batch * self.targets


@dataclass(frozen=True)
class Term:
    """A part of the memory.

    Attributes:
        column: of `COLUMNS`.
        what: it is.
        formula: of its bytes.
        bytes: of one GPU.
        source: where the formula comes from.
    """

    column: str
    what: str
    formula: str
    bytes: int
    source: str


def kept(load: Load, *, recompute: bool) -> list[Term]:
    """Activations of all blocks and around them, as the backward pass begins."""
    blocks, block = load.backbone.num_layers, load.block
    each = [block.entry] if recompute else [block.entry, *block.inside]
    return [
        _inputs(load),
        _activation(block.last_norm),
        *(_activation(one, blocks) for one in each),
    ]


def matrix_copies(load: Load, blocks: int) -> Term:
    """Autocast's bf16 copies of the readout's fp32 matrix and of those of so many blocks."""
    readout = load.one.product_bytes * load.size.output_macs
    what = f"bf16 copies of the matrices of readout and {blocks} blocks"
    size = readout + blocks * load.block.matrices.bytes
    return Term("activations", what, "2·their values", size, AUTOCAST)


def block_backward(load: Load, *, recompute: bool) -> list[Term]:
    """What the backward pass of the last block adds; with recomputation, its forward pass anew."""
    anew = load.block.inside if recompute else ()
    return [_activation(one) for one in (*load.block.working, *anew)]


def first_block(load: Load) -> list[Term]:
    """What the first block kept, or has made anew."""
    return [_activation(one) for one in (load.block.entry, *load.block.inside)]


def loss_forward(load: Load) -> list[Term]:
    """The readout with its loss, which makes the gradient of the logits at once."""
    if load.size.output == "patches":
        return [_patch_loss(load)]
    size, logits = load.one.product_bytes, load.rows * load.size.vocab_size
    if load.one.compiled:
        # The compiler writes the gradients of all parts where they belong; a part is in fp32.
        copies, part = 1, FP32
    else:
        # Parts and what they are joined to; the last part's logits in bf16 and twice in fp32.
        copies, part = 2, FP32 if size == FP32 else size + 2 * FP32
    whole = copies * size
    return [
        Term("loss", "gradient of the logits", f"{whole}·S·V", whole * logits, LOSS),
        Term("loss", "a part's logits", f"{part}·S·V/{CHUNKS}", part * logits // CHUNKS, LOSS),
    ]  # fmt: skip


def loss_backward(load: Load) -> list[Term]:
    """The gradient of the logits becomes those of the last vectors and of the readout."""
    if load.size.output == "patches":
        return [_patch_loss(load), readout_gradient(load)]
    size, rows = load.one.product_bytes, load.rows
    each = 2 * FP32 + (size if size < FP32 else 0)
    logits, vectors = rows * load.size.vocab_size, rows * load.backbone.width
    return [
        Term("loss", "gradient of the logits", f"{size}·S·V", size * logits, LOSS),
        Term("loss", "gradient of the last vectors", f"{each}·S·D", each * vectors, LOSS),
        readout_gradient(load),
    ]


def readout_gradient(load: Load) -> Term:
    """The first gradient that there is, of the matrix that makes logits or patches."""
    return Term("gradients", "gradient of the readout", "4·V·D", FP32 * load.size.output_macs, LOSS)


def embedding_backward(load: Load) -> list[Term]:
    """A gradient of every vector, and one of the embedding that is added to the readout's."""
    vectors = FP32 * load.one.positions * load.backbone.width
    return [
        Term("activations", "gradient of the embedded", "4·B·L·D", vectors, EMBEDDING),
        Term(
            "gradients", "gradient of the embedding", "4·V·D", FP32 * load.size.embedding, EMBEDDING
        ),
    ]


def tokenizing(load: Load) -> Term:
    """Pictures of a micro-batch become tokens before the model sees them."""
    source = "tokenizers/config.py"
    return Term("tokenizer", "encoding", "of its widest maps", load.frozen.encode_bytes, source)


def _activation(one: Kept, times: int = 1) -> Term:
    what, blocks = (one.what, "") if times == 1 else (f"{one.what}, {times} times", "n·")
    formula = f"{one.size}·{blocks}{one.formula}"
    return Term("activations", what, formula, times * one.bytes, BACKBONE)


def _inputs(load: Load) -> Term:
    """Of the embedding: ids, or patches in fp32 and as the product takes them."""
    if not load.patch_dim:
        return Term("activations", "ids", "8·B·L", 8 * load.one.positions, EMBEDDING)
    size = FP32 + (load.one.product_bytes if load.one.precision == "bf16" else 0)
    values = load.one.batch * load.targets * load.patch_dim
    return Term("activations", "patches", f"{size}·S·C", size * values, "torch's linear")


def _patch_loss(load: Load) -> Term:
    """Targets, prediction, in bf16 too, difference, its square; an MLP in front keeps two more."""
    size = load.one.product_bytes
    values, formula = 4 * FP32 * load.target_dim, "16·S·C"
    if load.backbone.patch_readout == "mlp":
        values += 2 * size * PATCH_MLP_RATIO * load.backbone.width
        formula += f" + {2 * size * PATCH_MLP_RATIO}·S·D"
    return Term("loss", "targets and errors of patches", formula, load.rows * values, LOSS)
