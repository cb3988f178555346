"""Memory of one GPU at the highest moment of a training step, by arithmetic. No torch here.

Eight moments of a step can be the highest: encoding, the loss, its backward pass, those of the last
and of the first block and their end, the summing of the gradients and the optimizer's step. On the
way activations go and gradients come. Each moment is a list of terms with the formula that they
follow; `benchmarks/plan.py` puts the sum beside measured peaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from toto.analysis.memory_terms import (
    FP32,
    Load,
    Term,
    block_backward,
    embedding_backward,
    first_block,
    kept,
    loss_backward,
    loss_forward,
    matrix_copies,
    readout_gradient,
    tokenizing,
)

__all__ = ["Moment", "Setting", "Stage", "highest_moment"]

Stage = Literal[0, 1, 2, 3]

# In values: DeepSpeed 0.19.8 sums whole gradients in pieces of the first size, where they are not
# one tensor (runtime/engine.py), and lets go of gathered weights beyond the second
# (runtime/zero/config.py).
WHOLE_BUCKET = 500_000_000
MAX_LIVE = 1_000_000_000

LOCAL = "engine_local.py, AdamW"
ZERO = "Rajbhandari et al. 2020, §5"
DEEPSPEED = "training.deepspeed"


@dataclass(frozen=True)
class Setting:
    """How a training is spread.

    Attributes:
        stage: of ZeRO; None: the engine of one process, without DeepSpeed.
        recompute: as `training.recompute`.
    """

    stage: Stage | None
    recompute: bool

    def __str__(self) -> str:
        engine = "one process" if self.stage is None else f"ZeRO {self.stage}"
        return f"{engine}, recompute" if self.recompute else engine


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
    gradients = _gradients(load, setting)
    # What the first backward pass of a step makes stays until its end.
    before = [] if _whole(setting) else [gradients]
    if load.micro_batches > 1:
        before = [gradients]
    standing = [*_states(load, setting), *_buckets(load, setting)]
    # Autocast copies a matrix once a forward pass; recomputed blocks do not keep theirs.
    blocks = load.backbone.num_layers
    copies = _copies(load, blocks)
    kept_copies = _copies(load, 0 if setting.recompute else blocks)
    block_copies = _copies(load, 1 if setting.recompute else blocks)
    back = block_backward(load, recompute=setting.recompute)
    activations = kept(load, recompute=setting.recompute)
    through = [*standing, *before]
    moments = {
        "encoding": [*through, tokenizing(load)],
        "loss": [*through, *activations, *copies, *loss_forward(load)],
        "backward pass of the loss": [
            *through, *activations, *kept_copies, *loss_backward(load)
        ],
        "backward pass of the last block": [
            *standing, *(before or [readout_gradient(load)]), *activations, *block_copies,
            *back,
        ],
        "backward pass of the first block": [
            *standing, gradients, *first_block(load), *_copies(load, 1),
            *block_backward(load, recompute=False),
        ],
        "end of the backward pass": [*standing, gradients, *embedding_backward(load)],
        "summing of the gradients": [*standing, gradients, *_whole_buckets(load, setting)],
        "step of the optimizer": [*standing, gradients, *_joined_gradients(load, setting)],
    }  # fmt: skip
    found = [Moment(name, tuple(terms)) for name, terms in moments.items()]
    return max(found, key=lambda moment: moment.bytes)


def _whole(setting: Setting) -> bool:
    """Whether every rank has all weights, gradients and moments, and AdamW works on them."""
    return setting.stage is None or setting.stage == 0


def _copies(load: Load, blocks: int) -> list[Term]:
    """Weights are fp32 at every stage, so that autocast copies them at every stage."""
    return [matrix_copies(load, blocks)] if load.one.precision == "bf16" else []


def _states(load: Load, setting: Setting) -> list[Term]:
    """Return weights and optimizer state; from stage 1 on the optimizer has its own weights too."""
    params, tokenizer = load.size.total, FP32 * load.frozen.params
    if _whole(setting):
        weights = Term("weights", "weights", "4·P", FP32 * params, LOCAL)
        optimizer = Term("optimizer", "two moments", "8·P", 2 * FP32 * params, LOCAL)
    else:
        parts = load.gpus if setting.stage == 3 else 1
        formula = "4·P/R" if setting.stage == 3 else "4·P"
        weights = Term("weights", "weights", formula, FP32 * params // parts, ZERO)
        optimizer = _sharded_state(load)
    frozen = Term(
        "tokenizer", "tokenizer's weights", "4·its parameters", tokenizer, "tokenizers/size.py"
    )
    return [weights, optimizer, frozen]


def _sharded_state(load: Load) -> Term:
    what = "weights of the optimizer, two moments"
    if load.deepspeed.offload_optimizer:
        return Term("optimizer", f"{what}: in the CPU's memory", "0", 0, DEEPSPEED)
    size = 3 * FP32 * load.size.total // load.gpus
    return Term("optimizer", what, "12·P/R", size, ZERO)


def _gradients(load: Load, setting: Setting) -> Term:
    """Sums in fp32; parted from stage 2 on."""
    parts = load.gpus if setting.stage in (2, 3) else 1
    formula = "4·P/R" if setting.stage in (2, 3) else "4·P"
    source = LOCAL if _whole(setting) else ZERO
    return Term("gradients", "gradients", formula, FP32 * load.size.total // parts, source)


def _joined_gradients(load: Load, setting: Setting) -> list[Term]:
    """This rank's part, copied into one tensor; the other engines hold it so all along."""
    if _whole(setting) or setting.stage == 3:
        return []
    size = FP32 * load.size.total // load.gpus
    return [
        Term("gradients", "a rank's part, joined", "4·P/R", size, "DeepSpeed's stage_1_and_2.py")
    ]


def _buckets(load: Load, setting: Setting) -> list[Term]:
    """What communication takes during the backward pass."""
    params = load.size.total
    if _whole(setting):
        return []
    # While one bucket is on its way, stages 1 and 2 fill another.
    config = load.deepspeed
    times = 2 if config.overlap_comm and setting.stage != 3 else 1
    values = config.bucket_elements
    bucket = Term(
        "buckets", "gradients on their way", f"{times * FP32}·{values:,}",
        times * FP32 * values, DEEPSPEED,
    )  # fmt: skip
    if setting.stage != 3:
        return [bucket]
    most = MAX_LIVE + config.prefetch_elements
    gathered = f"{FP32}·min(P, {most:,})"
    live = FP32 * min(params, most)
    return [bucket, Term("buckets", "gathered weights", gathered, live, DEEPSPEED)]


def _whole_buckets(load: Load, setting: Setting) -> list[Term]:
    """Gradients that are summed whole, after the backward pass, go through copies."""
    if setting.stage != 0:
        return []
    values = min(load.size.total, WHOLE_BUCKET)
    formula = f"4·min(P, {WHOLE_BUCKET:,})"
    return [Term("buckets", "gradients on their way", formula, FP32 * values, "DeepSpeed's engine")]
