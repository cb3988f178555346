"""`toto export hf`: a run as a directory that transformers loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toto.export.hf import ModelRecord, write_model
from toto.jobs.console import say
from toto.jobs.trained import import_all, load_trained, resolve_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["export_to_hf"]


def export_to_hf(run: str, out: Path, *, imports: Sequence[str]) -> None:
    """Write a run's newest checkpoint, or the one named, to the new folder `out`.

    Raises:
        UserError: no such run, a model that transformers does not have, or a folder with content.
    """
    import_all(imports)
    trained = load_trained(resolve_run(run))
    recipe, meta = trained.found.recipe, trained.found.meta
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
    say(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
