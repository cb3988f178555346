"""`toto export hf`: a run as a directory that transformers loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toto.errors import UserError
from toto.export.hf import ModelRecord, write_model
from toto.folders import held_folder, is_whole, results_in
from toto.jobs.console import say
from toto.jobs.trained import (
    FoundRun,
    import_all,
    load_trained,
    names_beside,
    require_next_tokens,
    resolve_run,
)
from toto.wording import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["export_to_hf"]


def export_to_hf(run: str, out: Path, *, imports: Sequence[str]) -> None:
    """Write a run's newest checkpoint, or the one named, to the new folder `out`.

    Raises:
        UserError: no such run, one that learned classes, a model that transformers does not have
            or cannot express, or a folder with content.
    """
    import_all(imports)
    found = resolve_run(run)
    require_next_tokens(found)
    with held_folder(out, "toto export hf") as folder:
        if is_whole(folder):
            raise UserError(f"{out} exists already. Remove it, or name another folder")
        _export(found, folder)
    say(f"{out}: {', '.join(results_in(out))}")


def _export(found: FoundRun, out: Path) -> None:
    """Write a run's model to `out`, a folder that is held."""
    trained = load_trained(found)
    recipe, meta = found.recipe, found.meta
    height, width = recipe.tokenizer.grid(recipe.clip.resolution)
    record = ModelRecord(
        backbone=recipe.backbone.model_dump(mode="json"),
        tokenizer=recipe.tokenizer.model_dump(mode="json"),
        fingerprint=str(meta.tokenizer),
        resolution=recipe.clip.resolution,
        frames=recipe.clip.frames,
        grid=(height, width),
        step=meta.step,
    )
    write_model(trained.model.cpu(), record, out)
    beside = names_beside(found)
    if beside:
        task = recipe.task.registered_name
        say(f"left out: {number_of(len(beside), 'tensor')} of the task {task} ({beside[0]}, …)")
