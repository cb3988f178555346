"""A tokenizer as a command names it: by a recipe, by its weights, or by the run that trained it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toto.errors import Problem, RecipeError, UserError
from toto.jobs.component import described_component
from toto.jobs.setup import RECIPE_FILE
from toto.jobs.train_tokenizer import WEIGHTS_FILE
from toto.recipe.reader import check_recorded, read_recipe
from toto.recipe.yaml_reader import read_yaml
from toto.tokenizers.config import TOKENIZERS
from toto.tokenizers.official import PREFIX as OFFICIAL_PREFIX
from toto.tokenizers.weights import SHIPPED, read_identity

if TYPE_CHECKING:
    from toto.tokenizers.config import TokenizerConfig

__all__ = ["NamedTokenizer", "find_tokenizer", "require_weights"]


@dataclass(frozen=True)
class NamedTokenizer:
    """One that was found, not built yet.

    Attributes:
        name: short, for tables and figures.
        config: with weights.
        resolution: side in pixels of the pictures it is for; None where nothing says so.
    """

    name: str
    config: TokenizerConfig
    resolution: int | None


def find_tokenizer(text: str) -> NamedTokenizer:
    """What `recipes/x.yaml`, `x`, `w.safetensors`, `toto:NAME`, `official:NAME` or `runs/x` means.

    A recipe gives its tokenizer and its resolution. Weights say whose they are, and nothing of a
    resolution. A folder is a run of `toto tokenizer train`: its weights, its recipe's resolution.

    Raises:
        UserError: there is no such thing, or the recipe's tokenizer has no weights.
    """
    if text.startswith((SHIPPED, OFFICIAL_PREFIX)):
        return NamedTokenizer(text.partition(":")[2], _config_of(text), None)
    path = Path(text)
    if path.is_dir():
        return _of_run(path)
    if path.suffix == ".safetensors":
        name = path.resolve().parent.name if path.name == WEIGHTS_FILE else path.stem
        return NamedTokenizer(name, _config_of(text), None)
    recipe = read_recipe(text)
    require_weights(recipe.tokenizer, text)
    return NamedTokenizer(recipe.name, recipe.tokenizer, recipe.clip.resolution)


def require_weights(config: TokenizerConfig, recipe: str) -> None:
    """Refuse the tokenizer of a recipe that would mean nothing.

    Raises:
        RecipeError: it has no weights.
    """
    if config.missing_weights:
        raise RecipeError(recipe, [Problem("tokenizer.weights", "missing", config.missing_weights)])


def _of_run(run: Path) -> NamedTokenizer:
    weights, recipe_file = run / WEIGHTS_FILE, run / RECIPE_FILE
    if not weights.is_file():
        raise UserError(
            f"{run} holds no {WEIGHTS_FILE}, which `toto tokenizer train` writes at its end. Of "
            "another run name the recipe, RUN/recipe.yaml; or name a .safetensors file"
        )
    resolution = None
    if recipe_file.is_file():
        resolution = check_recorded(read_yaml(recipe_file), str(recipe_file)).clip.resolution
    return NamedTokenizer(run.resolve().name, _config_of(str(weights)), resolution)


def _config_of(weights: str) -> TokenizerConfig:
    description = read_identity(weights) | {"weights": weights}
    return described_component(TOKENIZERS, description, weights)
