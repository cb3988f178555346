"""`toto analyze coordinates`: whether a backbone's activations keep their size under µP."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from toto.analysis.coordinates import Coordinates, check_coordinates, slope
from toto.analysis.figures import draw_coordinates
from toto.backbones.config import BACKBONES, BackboneConfig
from toto.errors import UserError
from toto.files import write_atomic
from toto.folders import held_folder, new_folder
from toto.jobs.component import parse_component
from toto.jobs.console import progress_bar, say, say_table
from toto.jobs.trained import import_all

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["analyze_coordinates"]


def analyze_coordinates(
    text: str,
    out: Path,
    *,
    widths: Sequence[int],
    lr: float,
    steps: int,
    imports: Sequence[str],
) -> None:
    """Train at each width with µP (base: the smallest width) and without, and write OUT.

    Args:
        text: the backbone, as in a recipe.
        out: the folder of coordinates.json and coordinates.png.
        widths: at least two.
        lr: learning rate of all steps.
        steps: optimizer steps.
        imports: plug-ins to import first.

    Raises:
        UserError: an unknown backbone, fewer than two widths, one that does not fit it, a training
            that diverges, or a folder that holds other files or is being written.
        RunError: the disk is full or refuses.
    """
    import_all(imports)
    config = parse_component(BACKBONES, text)
    widths = sorted(set(widths))
    if len(widths) < 2:
        raise UserError("--widths: two or more are needed to see a slope, for example 64,128,256")
    with held_folder(out, "toto analyze coordinates") as folder:
        found = _train_all(config, widths, lr=lr, steps=steps)
        with new_folder(folder) as unfinished:
            draw_coordinates(unfinished / "coordinates.png", widths, found)
            record = json.dumps(_record(config, widths, lr, found), indent=2) + "\n"
            write_atomic(unfinished / "coordinates.json", record)
    say(f"{out}: coordinates.json, coordinates.png")


def _train_all(
    config: BackboneConfig, widths: Sequence[int], *, lr: float, steps: int
) -> dict[str, list[Coordinates]]:
    """Train at each width with µP and without, and print the slopes."""
    found = {}
    for label, base in (("without µP", None), ("with µP", widths[0])):
        candidate = config.model_copy(update={"mup_base_width": base})
        _check_widths(candidate, widths)
        with progress_bar(label, "models") as progress:
            found[label] = check_coordinates(
                candidate, widths, lr=lr, steps=steps, progress=progress
            )
    _require_finite(found, lr)
    _say_slopes(widths, found)
    return found


def _record(
    config: BackboneConfig, widths: Sequence[int], lr: float, found: dict[str, list[Coordinates]]
) -> dict[str, Any]:
    """Return what coordinates.json holds."""
    return {
        "backbone": config.model_dump(mode="json"),
        "widths": list(widths),
        "lr": lr,
        "mean_size": {
            label: {one.name: one.sizes for one in of_label} for label, of_label in found.items()
        },
    }


def _check_widths(config: BackboneConfig, widths: Sequence[int]) -> None:
    for width in widths:
        try:
            config.at_width(width)
        except ValidationError as error:
            reasons = [one["msg"].removeprefix("Value error, ") for one in error.errors()]
            raise UserError(
                f"--widths: {width} does not fit {config.registered_name}: {'; '.join(reasons)}"
            ) from None


def _require_finite(found: dict[str, list[Coordinates]], lr: float) -> None:
    for label, of_label in found.items():
        for one in of_label:
            if not all(math.isfinite(size) for sizes in one.sizes for size in sizes):
                raise UserError(
                    f"--lr {lr:g}: {one.name} is not finite {label}, so that there is no slope. "
                    "Take a lower one, or fewer --steps"
                )


def _say_slopes(widths: Sequence[int], found: dict[str, list[Coordinates]]) -> None:
    """The exponent of the width after the last step, where its lack would have shown longest."""
    names = [one.name for one in next(iter(found.values()))]
    rows = [
        [name, *(f"{slope(widths, of_label[i].sizes[-1]):+.2f}" for of_label in found.values())]
        for i, name in enumerate(names)
    ]
    say("mean |x| after the last step grows as the width to the power of")
    say_table(["", *found], rows)
