"""Memory of one GPU at the highest moment of a training step, by arithmetic. No torch here.

A step has four moments that can be the highest: the loss, its backward pass, the backward pass of
the last block, and that of the embedding, when every gradient is there. Each is a list of terms
with the formula they follow from; `benchmarks/plan.py` puts the sum beside measured peaks.

Letters of the formulas: P parameters, R GPUs, n blocks, S = B · L rows of the readout, and those of
`toto.backbones.memory`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from toto.backbones.config import PATCH_MLP_RATIO

if TYPE_CHECKING:
    from toto.backbones.config import BackboneConfig
    from toto.backbones.memory import BlockMemory, Pass
    from toto.model_size import ModelSize

__all__ = ["COLUMNS", "Load", "Moment", "Setting", "Term", "highest_moment"]

COLUMNS = ("weights", "gradients", "optimizer", "activations", "loss", "buckets")

FP32 = 4
CHUNKS = 16  # of `layers.loss.LinearCrossEntropy`

# DeepSpeed's defaults (0.19.8, runtime/zero/config.py), in values.
REDUCE_BUCKET = 500_000_000
PREFETCH_BUCKET = 50_000_000
MAX_LIVE = 1_000_000_000

ZERO = "Rajbhandari et al. 2020, §3.1 and Figure 1"
LOCAL = "engine_local.py: fp32 weights, AdamW"
AUTOGRAD = "backbones/memory.py"
LOSS = "layers/loss.py"
DEEPSPEED = "DeepSpeed's zero_optimization defaults"


@dataclass(frozen=True)
class Setting:
    """How a training is spread.

    Attributes:
        stage: of ZeRO; None: the engine of one process, without DeepSpeed.
        recompute: as `training.recompute`.
    """

    stage: int | None
    recompute: bool

    def __str__(self) -> str:
        engine = "one process" if self.stage is None else f"ZeRO {self.stage}"
        return f"{engine}, recompute" if self.recompute else engine


@dataclass(frozen=True)
class Load:
    """What a GPU has to hold, whatever the setting.

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
    """

    size: ModelSize
    backbone: BackboneConfig
    block: BlockMemory
    one: Pass
    targets: int
    micro_batches: int
    gpus: int
    patch_dim: int
    target_dim: int

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


@dataclass(frozen=True)
class Moment:
    """What stands in memory at once."""

    name: str
    terms: tuple[Term, ...]

    @property
    def bytes(self) -> int:
        """Of all terms."""
        return sum(term.bytes for term in self.terms)

    def column(self, name: str) -> int:
        """Bytes of the terms of one column."""
        return sum(term.bytes for term in self.terms if term.column == name)


def highest_moment(load: Load, setting: Setting) -> Moment:
    """The moment of a step in which the most memory is taken."""
    standing = [*_states(load, setting), *_buckets(load, setting)]
    gradients = _gradients(load, setting)
    before = gradients if load.micro_batches > 1 else []
    kept = _kept(load, setting)
    copies = _copies(load, setting)
    moments = [
        Moment("loss", (*standing, *before, *kept, *copies, *_loss_forward(load))),
        Moment(
            "backward pass of the loss", (*standing, *before, *kept, *copies, *_loss_back(load))
        ),
        Moment(
            "backward pass of the last block",
            (*standing, *(before or [_readout_gradient(load)]), *kept, *_block_back(load, setting)),
        ),
        Moment("end of the backward pass", (*standing, *gradients, *_embedding_back(load))),
    ]
    return max(moments, key=lambda moment: moment.bytes)


def _shared(load: Load, setting: Setting, since: int) -> int:
    """Over how many GPUs a state is spread that ZeRO spreads from stage `since` on."""
    return load.gpus if setting.stage is not None and setting.stage >= since else 1


def _divided(formula: str, parts: int) -> str:
    return f"{formula} / R" if parts > 1 else formula


def _states(load: Load, setting: Setting) -> list[Term]:
    """Weights and optimizer state."""
    params, local = load.size.total, setting.stage is None
    size = FP32 if local else load.one.product_bytes
    # ZeRO flattens its share of the weights into fp32 masters, in fp32 too; AdamW has two moments.
    master = local or (setting.stage == 0 and size == FP32)
    optimizer = 8 if master else 12
    by_weights, by_optimizer = _shared(load, setting, 3), _shared(load, setting, 1)
    source = LOCAL if local else ZERO
    return [
        Term(
            "weights", "weights", _divided(f"{size}·P", by_weights),
            size * params // by_weights, source,
        ),
        Term(
            "optimizer",
            "two moments" if master else "two moments and fp32 masters",
            _divided(f"{optimizer}·P", by_optimizer),
            optimizer * params // by_optimizer,
            source,
        ),
    ]  # fmt: skip


def _gradients(load: Load, setting: Setting) -> list[Term]:
    size = FP32 if setting.stage is None else load.one.product_bytes
    parts = _shared(load, setting, 2)
    source = LOCAL if setting.stage is None else ZERO
    formula = _divided(f"{size}·P", parts)
    return [Term("gradients", "gradients", formula, size * load.size.total // parts, source)]


def _readout_gradient(load: Load) -> Term:
    """The first gradient that there is, of the matrix that makes logits or patches."""
    values = load.size.output_macs
    return Term("gradients", "gradient of the readout", "4·V·D", FP32 * values, LOSS)


def _buckets(load: Load, setting: Setting) -> list[Term]:
    """What DeepSpeed's communication takes."""
    if setting.stage is None:
        return []
    params, size = load.size.total, load.one.product_bytes
    if setting.stage == 0:
        values = min(params, REDUCE_BUCKET)
        return [
            Term(
                "buckets", "gradients on their way", f"{size}·min(P, 5e8)", size * values, DEEPSPEED
            )
        ]
    # overlap_comm, which is on by default in stage 3 alone, would double the bucket.
    bucket = REDUCE_BUCKET * (2 if setting.stage == 3 else 1)
    terms = [
        Term("buckets", "gradients on their way", f"{size}·{bucket:.0e}", size * bucket, DEEPSPEED)
    ]
    if setting.stage == 3:
        live = min(params, MAX_LIVE + PREFETCH_BUCKET)
        terms.append(
            Term("buckets", "weights gathered", f"{size}·min(P, 1.05e9)", size * live, DEEPSPEED)
        )
    return terms


def _kept(load: Load, setting: Setting) -> list[Term]:
    """Activations of all blocks and around them, as the backward pass begins."""
    blocks, block = load.backbone.num_layers, load.block
    terms = [
        Term("activations", block.last_norm.what, f"4·{block.last_norm.formula}", block.last_norm.bytes, AUTOGRAD),
        Term(
            "activations", f"{block.entry.what}, {blocks} times", f"4·n·{block.entry.formula}",
            blocks * block.entry.bytes, AUTOGRAD,
        ),
        _inputs(load),
    ]  # fmt: skip
    if not setting.recompute:
        terms += [
            Term(
                "activations", f"{kept.what}, {blocks} times", f"{kept.size}·n·{kept.formula}",
                blocks * kept.bytes, AUTOGRAD,
            )
            for kept in block.inside
        ]  # fmt: skip
    return terms


def _inputs(load: Load) -> Term:
    """Of the embedding: ids, or patches in fp32 and as the product takes them."""
    if not load.patch_dim:
        return Term("activations", "ids", "8·B·L", 8 * load.one.positions, "torch's embedding")
    size = FP32 + (load.one.product_bytes if load.one.precision == "bf16" else 0)
    values = load.one.batch * load.targets * load.patch_dim
    return Term("activations", "patches", f"{size}·S·C", size * values, "torch's linear")


def _copies(load: Load, setting: Setting) -> list[Term]:
    """Under autocast bf16 copies of fp32 weights live until the forward pass ends, or are kept."""
    if setting.stage is not None or load.one.precision == "fp32":
        return []
    blocks, matrices = load.backbone.num_layers, load.block.matrices.bytes
    readout = load.one.product_bytes * load.size.output_macs
    return [
        Term(
            "activations",
            "bf16 copies of matrices",
            "2·P, of matrices",
            blocks * matrices + readout,
            "autocast",
        ),
    ]


def _loss_forward(load: Load) -> list[Term]:
    size, rows = load.one.product_bytes, load.rows
    if load.size.output == "patches":
        return [_patch_loss(load)]
    logits = rows * load.size.vocab_size
    if load.one.compiled:
        # The compiler writes the parts' gradients where they belong; a part is in fp32.
        part = FP32 * logits // CHUNKS
        return [
            Term("loss", "gradient of the logits", f"{size}·S·V", size * logits, LOSS),
            Term("loss", "a part's logits", "4·S·V/16", part, LOSS),
        ]
    part = (FP32 if size == FP32 else FP32 + FP32 + size) * logits // CHUNKS
    return [
        Term(
            "loss",
            "gradient of the logits, in parts and joined",
            f"{2 * size}·S·V",
            2 * size * logits,
            LOSS,
        ),
        Term("loss", "the last part's logits", f"{part * CHUNKS // logits}·S·V/16", part, LOSS),
    ]


def _patch_loss(load: Load) -> Term:
    """Prediction, in bf16 too, difference, and its square; the MLP in front keeps two tensors."""
    size, rows = load.one.product_bytes, load.rows
    values = 3 * FP32 * load.target_dim
    formula = "12·S·C"
    if load.backbone.patch_readout == "mlp":
        hidden = PATCH_MLP_RATIO * load.backbone.width
        values += 2 * size * hidden
        formula = f"12·S·C + {2 * size}·S·4·D"
    return Term("loss", "prediction, difference, square", formula, rows * values, LOSS)


def _loss_back(load: Load) -> list[Term]:
    """The gradient of the logits becomes those of the last vectors and of the readout."""
    size, rows, width = load.one.product_bytes, load.rows, load.backbone.width
    if load.size.output == "patches":
        return [_patch_loss(load), _readout_gradient(load)]
    logits = rows * load.size.vocab_size
    vectors = rows * width * (2 * FP32 + (size if load.one.precision == "bf16" else 0))
    return [
        Term("loss", "gradient of the logits", f"{size}·S·V", size * logits, LOSS),
        Term("loss", "gradients of the last vectors", "8·S·D or 10·S·D", vectors, LOSS),
        _readout_gradient(load),
    ]


def _block_back(load: Load, setting: Setting) -> list[Term]:
    block = load.block
    copied = setting.stage is None
    terms = [
        Term("activations", kept.what, f"{kept.size}·{kept.formula}", kept.bytes, AUTOGRAD)
        for kept in block.working
    ]
    if setting.recompute:
        terms += [
            Term(
                "activations",
                f"{kept.what}, of one block",
                f"{kept.size}·{kept.formula}",
                kept.bytes,
                AUTOGRAD,
            )
            for kept in block.inside
        ]
    if copied and block.matrices.bytes:
        times = 1 if setting.recompute else load.backbone.num_layers
        terms.append(
            Term(
                "activations",
                block.matrices.what,
                "2·P, of matrices",
                times * block.matrices.bytes,
                "autocast",
            )
        )
    return terms


def _embedding_back(load: Load) -> list[Term]:
    """A gradient of every vector, and one of the embedding that is added to the readout's."""
    vectors = FP32 * load.one.positions * load.backbone.width
    return [
        Term("activations", "gradients of the embedded", "4·B·L·D", vectors, "torch's embedding"),
        Term(
            "gradients",
            "gradient of the embedding",
            "4·V·D",
            FP32 * load.size.embedding,
            "torch's embedding",
        ),
    ]
