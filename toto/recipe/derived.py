"""The numbers that follow from a recipe, printed before a run so that a wrong one is seen at once.

No torch here: counts are arithmetic on the Configs, and tests hold them to the real modules.
"""

from __future__ import annotations

from typing import Any

from toto.model_size import ModelSize
from toto.recipe.schemas import Recipe, TrainRecipe
from toto.tasks.config import ClassifyConfig, NextTokenProbesConfig
from toto.wording import number_of

__all__ = ["derived_numbers", "describe", "sequence_macs"]


def derived_numbers(recipe: Recipe) -> dict[str, Any]:
    """Sequence, batch, length, and for a backbone its parameters and MACs.

    Keys: tokens_per_frame, tokens_per_sequence, sequences_per_step, micro_batches_per_step,
    tokens_per_step, steps, tokens; with a backbone also target_resolution (px), vocab_size of the
    targets, params_* and forward_macs_per_sequence, train_macs_per_step (forward and backward,
    3 × forward).
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
    size = ModelSize.of(recipe.tokenizer, recipe.backbone, recipe.target_tokenizer)
    macs = sequence_macs(recipe, size)
    return {
        "target_resolution": recipe.target_resolution,
        "vocab_size": size.vocab_size,
        "params_embedding": size.embedding,
        "params_backbone": size.backbone,
        "params_readout": size.readout,
        "params_total": size.total,
        "forward_macs_per_sequence": macs,
        "train_macs_per_step": 3 * macs * recipe.batch_sequences,
    }


def sequence_macs(recipe: TrainRecipe, size: ModelSize) -> int:
    """Multiply-accumulates of one sequence, forward; attention counts as causal, whatever the mask.

    To classify, nothing is read out and no block runs after the layer; pooling counts nothing.

    Args:
        recipe: sound.
        size: of its model.
    """
    task, layout, depth = recipe.task, recipe.layout, recipe.backbone.num_layers
    if not isinstance(task, ClassifyConfig):
        return size.forward_macs(recipe.backbone, layout)
    blocks = task.layer if task.layer >= 0 else depth + 1 + task.layer
    inside = recipe.backbone.forward_macs(layout.length) * blocks // depth
    return layout.num_visual * size.input_macs + inside


def describe(recipe: Recipe) -> list[tuple[str, str]]:
    """The same numbers as lines for people: (what, value with unit)."""
    numbers = derived_numbers(recipe)
    layout = recipe.layout
    lines = [
        (
            "sequence",
            f"{number_of(layout.frames, 'frame')} × {layout.height} × {layout.width} tokens = "
            f"{layout.num_visual:,}, with {_specials(recipe)}",
        ),
        (
            "step",
            f"{number_of(numbers['sequences_per_step'], 'sequence')} = "
            f"{number_of(numbers['tokens_per_step'], 'token')}, "
            f"in micro-batches of {recipe.training.micro_batch}",
        ),
        ("run", f"{number_of(numbers['steps'], 'step')} = {number_of(numbers['tokens'], 'token')}"),
        ("mixture", _mixture(recipe)),
    ]
    if isinstance(recipe, TrainRecipe):
        lines += _describe_model(recipe, numbers)
    return lines


def _describe_model(recipe: TrainRecipe, numbers: dict[str, Any]) -> list[tuple[str, str]]:
    tokenizer = recipe.tokenizer
    return [
        *([("inputs", tokenizer.inputs)] if tokenizer.output == "patches" else []),
        ("prediction", _prediction(recipe)),
        *_probes(recipe),
        (
            "parameters",
            f"{numbers['params_total']:,}: backbone {numbers['params_backbone']:,}, "
            f"embedding {numbers['params_embedding']:,}, "
            f"readout {numbers['params_readout']:,}",
        ),
        ("vocabulary", f"{numbers['vocab_size']:,}" if numbers["vocab_size"] else "none: patches"),
        (
            "compute",
            f"{numbers['forward_macs_per_sequence']:.3g} MACs a sequence forward, "
            f"{numbers['train_macs_per_step']:.3g} a training step",
        ),
    ]


def _probes(recipe: TrainRecipe) -> list[tuple[str, str]]:
    """What is trained beside the model."""
    task = recipe.task
    if not isinstance(task, NextTokenProbesConfig):
        return []
    probes = task.probes
    if probes is None:
        return [("probes", "none: next-token loss only")]
    layers, heads, rates = (
        recipe.backbone.num_layers + 1, len(probes.heads), len(probes.learning_rates)
    )  # fmt: skip
    return [
        (
            "probes",
            f"{number_of(layers, 'layer')} × {number_of(heads, 'pooling')} × "
            f"{number_of(rates, 'rate')} = {layers * heads * rates}, on "
            f"the labels of {', '.join(probes.sources)}",
        )
    ]


def _specials(recipe: Recipe) -> str:
    layout = recipe.layout
    if isinstance(recipe, TrainRecipe) and recipe.target.output == "patches":
        return f"the start {layout.num_visual + 1:,}"
    return f"start and end {layout.num_visual + 2:,}"


def _prediction(recipe: TrainRecipe) -> str:
    """What goes in and what shall come out, each at its resolution."""
    own = f"{recipe.tokenizer.registered_name} at {recipe.clip.resolution} px"
    task = recipe.task
    if isinstance(task, ClassifyConfig):
        return (
            f"{recipe.tokenizer.output} of {own}, {recipe.mask.name} attention → class, from layer "
            f"{task.layer} through {task.head.label} pooling (cross-entropy)"
        )
    if recipe.target_tokenizer is not None:
        return (
            f"patches of {own} → next code of {recipe.target.registered_name}, of the same crop "
            f"at {recipe.target_resolution} px (cross-entropy)"
        )
    if recipe.tokenizer.output == "patches":
        return f"patches of {own} → next patch (squared error of normalised pixels)"
    return f"codes of {own} → next code (cross-entropy)"


def _mixture(recipe: Recipe) -> str:
    total = sum(source.weight for source in recipe.data.sources.values())
    shares = (f"{name} {source.weight / total:.0%}" for name, source in recipe.data.sources.items())
    return ", ".join(shares)
