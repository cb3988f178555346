"""Commands that look: list, show, plan, runs, check."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from toto.cli.options import ImportOption, RecipeArgument, SetOption

__all__ = ["add_to"]


class Family(StrEnum):
    """What `toto list` lists."""

    TOKENIZERS = "tokenizers"
    BACKBONES = "backbones"
    HEADS = "heads"
    TASKS = "tasks"
    FEATURE_NETWORKS = "feature-networks"
    RECIPES = "recipes"


class Part(StrEnum):
    """What `toto check` checks."""

    TOKENIZER = "tokenizer"
    BACKBONE = "backbone"
    HEAD = "head"


def add_to(app: typer.Typer) -> None:
    """Put the commands into the application."""
    app.command("list")(list_)
    app.command()(show)
    app.command()(plan)
    app.command()(runs)
    app.command()(check)


def list_(family: Annotated[Family, typer.Argument()], imports: ImportOption = None) -> None:
    """List the available components or recipes, plug-ins included."""
    from toto.jobs.inspect import list_family

    list_family(family.value, imports=imports or [])


def show(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE|SECTION",
            help="a YAML file, or the name of a shipped recipe; with --describe a section or "
            "setting, such as training or training.steps",
        ),
    ] = None,
    overrides: SetOption = None,
    describe: Annotated[
        bool,
        typer.Option("--describe", help="list the settings: type, default and meaning of each"),
    ] = False,
    imports: ImportOption = None,
) -> None:
    """Print the resolved recipe and the numbers that follow from it, or what can be set in one."""
    from toto.jobs.inspect import describe_settings, show_recipe

    if describe:
        describe_settings(recipe, imports=imports or [])
    elif recipe is None:
        raise typer.BadParameter("name a recipe, or give --describe", param_hint="RECIPE")
    else:
        show_recipe(recipe, overrides or [], imports=imports or [])


def plan(
    recipe: RecipeArgument,
    gpus: Annotated[
        str, typer.Option(metavar="[NODESx]GPUS", help="GPUs of one node, or nodes x GPUs of each")
    ] = "1",
    device: Annotated[
        str, typer.Option(help="h100, h200, b200, a100-40, a100-80, l40s, l4, rtx4090 or cpu")
    ] = "h100",
    utilisation: Annotated[
        float,
        typer.Option(min=0.01, max=1.0, help="of the device's peak, that training reaches"),
    ] = 0.4,
    overrides: SetOption = None,
) -> None:
    """Say what a training takes: compute, memory of each setting, time, data and disk.

    Nothing is built: it works on any machine, and tells which settings fit the device.
    """
    from toto.jobs.plan import print_plan

    print_plan(recipe, overrides or [], gpus=gpus, device=device, utilisation=utilisation)


def runs(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="a folder of runs, or one run; ./runs unless given"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="all that is known, as JSON")] = False,
) -> None:
    """List runs: running, done, stopped, failed or killed; step, speed, and how to resume."""
    from toto.jobs.runs import list_runs

    list_runs(folder, as_json=as_json)


def check(
    part: Annotated[Part, typer.Argument()],
    component: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="a name, or the mapping of a recipe: '{name: mine, size: 8}'"
        ),
    ],
    imports: ImportOption = None,
    resolution: Annotated[
        int | None,
        typer.Option(min=1, help="side in pixels of a tokenizer's test images; default: 64"),
    ] = None,
) -> None:
    """Run the contract on a component, yours or toto's."""
    from toto.jobs.check import check_component

    check_component(part.value, component, imports=imports or [], resolution=resolution)
