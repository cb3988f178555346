"""From the data section of a recipe to open datasets: made, tokenized and checked as it says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toto.data.index import Dataset
from toto.data.samples import make_samples
from toto.data.stream import StreamSource
from toto.data.tokens import require_tokenizer, tokenize_dataset
from toto.errors import DataError
from toto.jobs.console import progress_bar, say

if TYPE_CHECKING:
    from toto.data.config import ClipConfig
    from toto.recipe.schemas import Recipe
    from toto.tokenizers.base import Tokenizer

__all__ = ["Source", "open_sources"]

MAKERS = {"samples": make_samples}


@dataclass(frozen=True)
class Source:
    """One source of a recipe, opened.

    Attributes:
        name: in the recipe.
        train: what is trained on.
        validation: what is held out, or None.
        weight: share in the mixture.
        clip: the recipe's, with the source's own stride.
    """

    name: str
    train: Dataset
    validation: Dataset | None
    weight: float
    clip: ClipConfig

    def stream_source(self) -> StreamSource:
        """As the training stream takes it."""
        return StreamSource(self.name, self.train, self.weight, self.clip.stride)


def open_sources(recipe: Recipe, tokenizer: Tokenizer | None) -> list[Source]:
    """Open every source; make the datasets and the token shards that the recipe asks for.

    Args:
        recipe: of any training verb.
        tokenizer: whose codes token shards must hold; None where pixels are needed.

    Raises:
        DataError: a dataset that is missing, broken, or of another tokenizer.
        UserError: the datasets of `data.make` cannot be made.
    """
    _make_if_missing(recipe)
    sources = []
    for name, config in recipe.data.sources.items():
        stride = config.stride or recipe.clip.stride
        sources.append(
            Source(
                name=name,
                train=_open(recipe, config.path, tokenizer),
                validation=(
                    _open(recipe, config.validation, tokenizer) if config.validation else None
                ),
                weight=config.weight,
                clip=recipe.clip.model_copy(update={"stride": stride}),
            )
        )
    return sources


def _make_if_missing(recipe: Recipe) -> None:
    root = Path(recipe.data.root)
    paths = [
        root / path
        for source in recipe.data.sources.values()
        for path in (source.path, source.validation)
        if path is not None
    ]
    if recipe.data.make is None or all(path.exists() for path in paths):
        return
    say(f"making the datasets {recipe.data.make!r} in {root}")
    with progress_bar(f"making {recipe.data.make}") as progress:
        MAKERS[recipe.data.make](root, progress=progress)


def _open(recipe: Recipe, path: str, tokenizer: Tokenizer | None) -> Dataset:
    root = Path(recipe.data.root)
    dataset = Dataset.open(root / path)
    if tokenizer is None:
        if dataset.form == "tokens":
            raise DataError(
                f"{dataset.path} holds tokens, and a tokenizer is trained on pictures. Name the "
                "packed pictures or videos"
            )
        return dataset
    if recipe.data.tokens == "once" and dataset.form == "raw":
        dataset = _tokenized(dataset, root / "tokens", recipe.clip.resolution, tokenizer)
    if dataset.form == "tokens":
        require_tokenizer(dataset, tokenizer)
    return dataset


def _tokenized(dataset: Dataset, folder: Path, resolution: int, tokenizer: Tokenizer) -> Dataset:
    """The token shards of a dataset, made at the first use.

    Their folder names the content of the dataset, what is excluded of it, and the tokenizer:
    another dataset of the same name, or the same one packed anew, has a folder of its own.
    """
    content = dataset.manifest.fingerprint()[:8]
    if len(dataset.excluded):
        content += "-" + hashlib.sha256(dataset.excluded.tobytes()).hexdigest()[:8]
    out = folder / f"{dataset.name}-{content}-{resolution}px-{tokenizer.fingerprint()[:12]}"
    if not out.exists():
        say(f"tokenizing {dataset.path} → {out}, once")
        folder.mkdir(parents=True, exist_ok=True)
        with progress_bar(f"tokenizing {dataset.name}", "tokens") as progress:
            tokenize_dataset(
                dataset,
                out,
                tokenizer=tokenizer,
                resolution=resolution,
                progress=progress,
                note=say,
            )
    return Dataset.open(out)
