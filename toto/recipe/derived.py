"""The numbers that follow from a recipe, printed before a run so that a wrong one is seen at once.

No torch here: counts are arithmetic on the Configs, and tests hold them to the real modules.
"""

from __future__ import annotations

from typing import Any

from toto.model_size import ModelSize
from toto.recipe.schemas import Recipe, TrainRecipe

__all__ = ["derived_numbers", "describe"]


def derived_numbers(recipe: Recipe) -> dict[str, Any]:
    """Sequence, batch, length, and for a backbone its parameters and MACs.

    Keys: tokens_per_frame, tokens_per_sequence, sequences_per_step, micro_batches_per_step,
    tokens_per_step, steps, tokens; with a backbone also vocab_size, params_* and
    forward_macs_per_sequence, train_macs_per_step (forward and backward, 3 × forward).
    """
    layout = recipe.layout
    batch = recipe.batch_sequences
    numbers: dict[str, Any] = {
        "tokens_per_frame": layout.tokens_per_frame,
        "tokens_per_sequence": layout.num_visual,
        "sequences_per_step": batch,
        "micro_batches_per_step": -(-batch // recipe.training.micro_batch),
        "tokens_per_step": batch * layout.num_visual,
        "steps": recipe.training.steps,
        "tokens": recipe.training.steps * batch * layout.num_visual,
    }
    if isinstance(recipe, TrainRecipe):
        numbers |= _model_numbers(recipe)
    return numbers


def _model_numbers(recipe: TrainRecipe) -> dict[str, Any]:
    size = ModelSize.of(recipe.tokenizer, recipe.backbone)
    macs = size.forward_macs(recipe.backbone, recipe.layout)
    return {
        "vocab_size": size.vocab_size,
        "params_embedding": size.embedding,
        "params_backbone": size.backbone,
        "params_readout": size.readout,
        "params_total": size.total,
        "forward_macs_per_sequence": macs,
        "train_macs_per_step": 3 * macs * recipe.batch_sequences,
    }


def describe(recipe: Recipe) -> list[tuple[str, str]]:
    """The same numbers as lines for people: (what, value with unit)."""
    numbers = derived_numbers(recipe)
    layout = recipe.layout
    lines = [
        (
            "sequence",
            f"{layout.frames} frames × {layout.height} × {layout.width} tokens = "
            f"{layout.num_visual:,}, with start and end {layout.num_visual + 2:,}",
        ),
        (
            "step",
            f"{numbers['sequences_per_step']} sequences = {numbers['tokens_per_step']:,} tokens, "
            f"in micro-batches of {recipe.training.micro_batch}",
        ),
        ("run", f"{numbers['steps']:,} steps = {numbers['tokens']:,} tokens"),
        ("mixture", _mixture(recipe)),
    ]
    if isinstance(recipe, TrainRecipe):
        lines += [
            (
                "parameters",
                f"{numbers['params_total']:,}: backbone {numbers['params_backbone']:,}, "
                f"embedding {numbers['params_embedding']:,}, "
                f"readout {numbers['params_readout']:,}",
            ),
            (
                "vocabulary",
                f"{numbers['vocab_size']:,}" if numbers["vocab_size"] else "none: patches",
            ),
            (
                "compute",
                f"{numbers['forward_macs_per_sequence']:.3g} MACs a sequence forward, "
                f"{numbers['train_macs_per_step']:.3g} a training step",
            ),
        ]
    return lines


def _mixture(recipe: Recipe) -> str:
    total = sum(source.weight for source in recipe.data.sources.values())
    shares = (f"{name} {source.weight / total:.0%}" for name, source in recipe.data.sources.items())
    return ", ".join(shares)
