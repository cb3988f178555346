"""`toto plan`: what a training takes in compute, time, memory, data and disk. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toto.analysis.memory_terms import COLUMNS
from toto.analysis.plan import USABLE, Cluster, Plan, SettingPlan
from toto.analysis.plan_data import SourceNeed, source_needs
from toto.errors import UserError
from toto.jobs.console import say, say_table
from toto.recipe.derived import describe
from toto.recipe.reader import read_recipe
from toto.recipe.schemas import TrainRecipe
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["print_plan"]

DAY = 86_400
UNKNOWN = "?"
# docs/plan.md has those of Mamba's blocks, too.
LETTERS = (
    "P parameters, R GPUs, n blocks, B sequences of a micro-batch, L positions, D width, N heads, "
    "M values of all key heads, F hidden values, S rows of the readout, V logits of a row"
)


def print_plan(
    name: str, overrides: Sequence[str], *, gpus: str, device: str, utilisation: float
) -> None:
    """Print the plan of a recipe; nothing is built.

    Args:
        name: path or name of the recipe.
        overrides: `a.b=value`.
        gpus: of one node, or nodes x GPUs of each.
        device: a name of `DEVICES`.
        utilisation: of the device's peak, above 0, at most 1.

    Raises:
        RecipeError: every mistake of the recipe.
        UserError: a recipe that trains no model; no such device or number of GPUs.
    """
    cluster = Cluster.of(gpus, device, utilisation)
    recipe = read_recipe(name, overrides)
    if not isinstance(recipe, TrainRecipe):
        raise UserError(
            f"{name} trains a tokenizer, and plans are of models. Give a recipe of `toto train`"
        )
    plan = Plan.of(recipe, cluster)
    _print_run(recipe, plan, cluster)
    _print_settings(plan, cluster)
    _print_terms(plan)
    _print_data(recipe, source_needs(recipe))
    _print_disk(plan)


def _print_run(recipe: TrainRecipe, plan: Plan, cluster: Cluster) -> None:
    compiled = "compiled" if recipe.training.compile else "eager"
    machines = f"{cluster.nodes} × {cluster.per_node} {cluster.device.title}"
    where = cluster.device.title if cluster.gpus == 1 else machines
    say(f"{recipe.name} on {where}, {plan.precision}, {compiled}")
    for what, value in describe(recipe):
        if what != "compute":
            say(f"  {what}: {value}")
    say(
        f"  ranks: {cluster.gpus}; of a step each takes {number_of(plan.share, 'sequence')} "
        "at most, "
        f"micro-batches: {plan.micro_batches} of {plan.micro_batch}"
    )
    idle = cluster.gpus - plan.sequences_a_step
    if idle > 0:
        say(
            f"  ranks with nothing to do: {idle}; a step has "
            f"{number_of(plan.sequences_a_step, 'sequence')}"
        )
    compute, length = plan.compute, recipe.layout.num_visual
    say("multiply-accumulates")
    say_table(
        ["", "a token", "a sequence", "the run"],
        [
            [
                f"  {what}", f"{macs / length:.3g}", f"{macs:.3g}",
                f"{macs * compute.sequences:.3g}",
            ]
            for what, macs in (
                ("forward", compute.forward),
                ("training", compute.training),
                ("what recompute adds", compute.recomputed),
            )
        ],
    )  # fmt: skip
    say(
        f"  as the paper counts the run: {compute.table4:.3g} in Table 4 (parameters × images of "
        f"256 tokens), {compute.figure9:.3g} in Figure 9 (10^6 parameters × sequences)"
    )


def _print_settings(plan: Plan, cluster: Cluster) -> None:
    device = cluster.device
    rate = device.flops(plan.precision)
    say(
        "memory of a GPU in GiB at the highest moment of a step"
        + (
            ""
            if device.memory_gib is None
            else f"; {device.memory_gib:g} are there, {USABLE:.0%} to use"
        )
    )
    if plan.settings[0].moment is None:
        say("  unknown: the backbone's Config has no block_memory")
    say_table(
        ["", *COLUMNS, "sum", "fits", "s a step", "days"],
        [_setting_cells(one, plan, cluster) for one in plan.settings],
    )
    if rate is None:
        say(f"  time: unknown; no rate is stated of {device.title}")
    else:
        say(
            f"  time: at {cluster.utilisation:.0%} of {rate / 1e12:g} TFLOP/s ({device.source}), "
            "recomputed products counted; without loading, tokenizing, evaluation, and what GPUs "
            "send each other"
        )
    say(f"  the recipe has {plan.chosen}; {_how_to_change(cluster)}")
    if all(one.fits is False for one in plan.settings):
        say("  nothing fits: lower training.micro_batch, or take more GPUs")


def _how_to_change(cluster: Cluster) -> str:
    engine = " --set training.engine=deepspeed" if cluster.gpus == 1 else ""
    return (
        f"for another line `toto train` takes{engine} --set training.deepspeed.zero_stage=0 to 3, "
        "--set training.recompute=true"
    )


def _setting_cells(one: SettingPlan, plan: Plan, cluster: Cluster) -> list[str]:
    moment = one.moment
    if moment is None:
        memory = [UNKNOWN] * (len(COLUMNS) + 1)
    else:
        memory = [_gib(moment.column(name)) for name in COLUMNS] + [_gib(moment.bytes)]
    fits = UNKNOWN if one.fits is None else ("yes" if one.fits else "no")
    if one.step_seconds is None:
        return [f"  {one.setting}", *memory, fits, UNKNOWN, UNKNOWN]
    steps = plan.compute.sequences / plan.sequences_a_step
    days = one.step_seconds * steps / DAY
    return [f"  {one.setting}", *memory, fits, _short(one.step_seconds), _short(days)]


def _print_terms(plan: Plan) -> None:
    """What the setting of the recipe consists of."""
    (shown,) = (one for one in plan.settings if one.setting == plan.chosen)
    if shown.moment is None:
        return
    say(f"terms of {shown.setting}, at the {shown.moment.name}")
    say_table(
        ["  term", "GiB", "formula", "source"],
        [
            [f"  {term.what}", _gib(term.bytes), term.formula, term.source]
            for term in shown.moment.terms
        ],
    )
    say(f"  {LETTERS}")


def _print_data(recipe: TrainRecipe, needs: list[SourceNeed]) -> None:
    say("data of the run")
    tokens, frames = recipe.layout.num_visual, recipe.layout.frames
    say_table(
        ["", "sequences", "frames", "tokens", "epochs"],
        [
            [
                f"  {need.name}", f"{need.sequences:,}", f"{need.sequences * frames:,}",
                f"{need.sequences * tokens:.3g}",
                "not here" if need.epochs is None else f"{need.epochs:.3g}",
            ]
            for need in needs
        ],
    )  # fmt: skip
    for need in needs:
        if need.held is not None and need.held.token_bytes:
            say(f"  token shards of {need.name}: {_gib(need.held.token_bytes)} GiB")
    if recipe.tokenizer.output == "codes":
        say(
            f"  token shards take 2 bytes a token, {2 * recipe.layout.tokens_per_frame} a frame, "
            "and every decoded frame is coded"
        )


def _print_disk(plan: Plan) -> None:
    say(
        f"disk: {_gib(plan.disk_bytes)} GiB, {plan.kept_checkpoints} checkpoints kept and one "
        f"being written, {_gib(plan.checkpoint_bytes)} each (12 bytes a parameter)"
    )


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f}"
