"""From the data section of a recipe to open datasets: made, tokenized and checked as it says."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toto.data.addresses import expand, is_remote
from toto.data.config import CacheConfig, listed
from toto.data.index import Dataset
from toto.data.moving_digits import make_moving_digits
from toto.data.samples import make_samples
from toto.data.stream import Stream, StreamSource
from toto.data.tokens import require_tokenizer, tokenize_dataset
from toto.errors import DataError
from toto.jobs.console import progress_bar, say
from toto.jobs.history import first_start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from toto.data.config import ClipConfig, Decoder, Paths
    from toto.recipe.schemas import Recipe
    from toto.tokenizers.base import Tokenizer

__all__ = [
    "Source",
    "make_missing",
    "named_sources",
    "named_stream",
    "open_dataset",
    "open_sources",
    "root_explained",
]

MAKERS = {"samples": make_samples, "moving_digits": make_moving_digits}


@dataclass(frozen=True)
class Source:
    """One source of a recipe, opened.

    Attributes:
        name: in the recipe.
        train: what is trained on.
        validation: what is held out, or None.
        weight: share in the mixture.
        clip: the recipe's, with the source's own stride.
        decoder: of its training clips.
    """

    name: str
    train: Dataset
    validation: Dataset | None
    weight: float
    clip: ClipConfig
    decoder: Decoder = "pyav"

    def stream_source(self) -> StreamSource:
        """As the training stream takes it."""
        return StreamSource(self.name, self.train, self.weight, self.clip.stride, self.decoder)


def open_sources(recipe: Recipe, tokenizer: Tokenizer | None) -> list[Source]:
    """Open every source; make the datasets and the token shards that the recipe asks for.

    Args:
        recipe: of any training verb.
        tokenizer: whose codes token shards must hold; None where pixels are needed.

    Raises:
        DataError: a dataset that is missing, broken, or of another tokenizer.
        UserError: the datasets of `data.make` cannot be made.
    """
    make_missing(recipe)
    return _sources(recipe, lambda paths: _open(recipe, paths, tokenizer))


def named_sources(recipe: Recipe) -> list[Source]:
    """The sources with the datasets that a recipe names, as they are: nothing is tokenized.

    Raises:
        DataError: a dataset that is missing or broken.
    """
    data = recipe.data
    return _sources(recipe, lambda paths: open_dataset(paths, root=data.root, cache=data.cache))


def _sources(recipe: Recipe, opened: Callable[[Paths], Dataset]) -> list[Source]:
    _require_root(recipe)
    return [
        Source(
            name=name,
            train=opened(config.path),
            validation=opened(config.validation) if config.validation else None,
            weight=config.weight,
            clip=recipe.clip.model_copy(update={"stride": config.stride or recipe.clip.stride}),
            decoder=recipe.data.decoder,
        )
        for name, config in recipe.data.sources.items()
    ]


def _require_root(recipe: Recipe) -> None:
    """Refuse a relative `data.root` that is not there, before a dataset in it is called missing.

    Raises:
        DataError: there is no such folder, and every source is to be found in it.
    """
    root = recipe.data.root
    paths = [path for source in recipe.data.sources.values() for path in listed(source.path)]
    elsewhere = any(is_remote(path) or Path(path).is_absolute() for path in paths)
    if is_remote(root) or Path(root).is_absolute() or Path(root).is_dir() or elsewhere:
        return
    raise DataError(
        f"data.root: no folder {root} in the working directory ({Path.cwd()}). A relative path "
        "in a recipe starts there or, where that has nothing of the name, at the recipe's folder. "
        f"Start toto in the folder that has {root}, pack datasets into it "
        f"(toto pack SRC {Path(root) / paths[0]}), or give --set data.root=FOLDER"
    )


def open_dataset(paths: Paths, *, root: str = ".", cache: CacheConfig | None = None) -> Dataset:
    """Open what a source names: a folder, an address, a list or a pattern of several.

    Args:
        paths: relative to `root`; see `SourceConfig.path`.
        root: a folder or an address.
        cache: of remote datasets; the default one where this is None.

    Raises:
        DataError: one that is missing or broken, or they cannot be joined.
    """
    cache = cache or CacheConfig()
    places = expand(paths, root, cache.stall_seconds)
    datasets = [Dataset.open(place, cache) for place in places]
    return datasets[0] if len(datasets) == 1 else Dataset.join(datasets)


@contextmanager
def root_explained(root: str, run: Path) -> Iterator[None]:
    """Name both folders where the data of a run are missing, and it was started in another one.

    Args:
        root: `data.root`, as it is looked for now.
        run: the run directory, whose history has the working directory of its start.

    Raises:
        DataError: as in the block, with a note where `root` is relative.
    """
    try:
        yield
    except DataError as error:
        start = first_start(run)
        if start is not None and not is_remote(root) and not Path(root).is_absolute():
            before, here = Path(start.folder) / root, Path.cwd() / root
            if before != here:
                error.add_note(
                    f"data.root is {root!r}, relative to the working directory: {here} now, and "
                    f"{before} when the run was started, in {start.folder}. Run the command there, "
                    f"or move the data"
                )
        raise


def named_stream(recipe: Recipe) -> Stream:
    """The stream of the datasets that a recipe names, as they are: nothing is made or tokenized.

    Raises:
        DataError: a dataset that is missing or does not fit the clip.
    """
    data = recipe.data
    sources = [
        StreamSource(
            name,
            open_dataset(source.path, root=data.root, cache=data.cache),
            source.weight,
            source.stride,
        )
        for name, source in data.sources.items()
    ]
    return Stream(sources, recipe.clip, recipe.seed)


def make_missing(recipe: Recipe) -> None:
    """Make the datasets of `data.make`, unless all are there.

    Raises:
        UserError: they cannot be made.
    """
    if recipe.data.make is None:
        return
    root = _local_root(recipe, "data.make", "Remove data.make")
    paths = [
        root / path
        for source in recipe.data.sources.values()
        for paths in (source.path, source.validation or ())
        for path in listed(paths)
    ]
    if all(path.exists() for path in paths):
        return
    say(f"making the datasets {recipe.data.make!r} in {root}")
    with progress_bar(f"making {recipe.data.make}") as progress:
        MAKERS[recipe.data.make](root, progress=progress)


def _local_root(recipe: Recipe, key: str, mend: str) -> Path:
    """The folder of the datasets, to write into."""
    root = recipe.data.root
    if is_remote(root):
        raise DataError(f"{key} writes datasets under data.root, and {root} is remote. {mend}")
    return Path(root)


def _open(recipe: Recipe, paths: Paths, tokenizer: Tokenizer | None) -> Dataset:
    dataset = open_dataset(paths, root=recipe.data.root, cache=recipe.data.cache)
    if tokenizer is None:
        if dataset.form == "tokens":
            raise DataError(
                f"{dataset.path} holds tokens, and a tokenizer is trained on pictures. Name the "
                "packed pictures or videos"
            )
        return dataset
    if recipe.data.tokens == "once" and dataset.form == "raw":
        root = _local_root(recipe, "data.tokens: once", "Tokenize first: toto tokenize SHARDS OUT")
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
