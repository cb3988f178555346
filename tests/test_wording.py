from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import tiny_recipe

from toto.errors import RecipeError
from toto.recipe.derived import describe
from toto.recipe.reader import check_recipe
from toto.wording import number_of


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("frame",), "0 frames"),
        (1, ("frame",), "1 frame"),
        (2, ("frame",), "2 frames"),
        (1024, ("frame",), "1,024 frames"),
        (1, ("class", "classes"), "1 class"),
        (3, ("class", "classes"), "3 classes"),
    ],
)
def test_a_noun_agrees_with_its_number(number, words, text):
    assert number_of(number, *words) == text


def test_a_recipe_of_single_things_is_described_in_the_singular():
    raw = tiny_recipe(Path("data"), steps=1, batch_tokens=16, micro_batch=1)
    raw |= {"schedule": {"warmup_steps": 0}, "name": "one", "output": "runs/one"}
    raw["clip"]["frames"] = 1
    described = dict(describe(check_recipe(raw, "one.yaml")))
    assert described["sequence"].startswith("1 frame × 4 × 4 tokens = ")
    assert described["step"].startswith("1 sequence = 16 tokens")
    assert described["run"] == "1 step = 16 tokens"
    raw["schedule"]["warmup_steps"] = 1
    with pytest.raises(RecipeError, match="1 step of warm-up in a run of 1"):
        check_recipe(raw, "one.yaml")
