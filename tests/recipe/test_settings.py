"""`toto show --describe`: what a recipe can set, read from the schemas."""

from __future__ import annotations

import json

import pytest

from toto.errors import UserError
from toto.recipe.reader import list_recipes, read_probe_recipe, read_recipe
from toto.recipe.settings import all_sections, sections_of


def test_every_setting_has_a_description():
    lacking = [
        f"{section.owner.__name__}.{setting.name}"
        for section in all_sections()
        for setting in section.settings
        if not setting.meaning.strip()
    ]
    assert lacking == [], "say what each is: Field(description=...)"


def test_every_class_says_what_it_is():
    assert [section.title for section in all_sections() if not section.about] == []


def settings_at(path):
    return {one.name: one for section in sections_of(path) for one in section.settings}


def test_type_bounds_and_default_are_those_of_the_schema():
    found = settings_at("optimizer")
    assert (found["lr"].kind, found["lr"].default) == ("number > 0", "0.0003")
    assert found["betas"].kind == "[number ≥ 0, < 1, number ≥ 0, < 1]"
    assert settings_at("training")["steps"].default == "required"
    assert settings_at("training")["keep_every"].kind == "integer > 0, or null"
    assert settings_at("data.sources")["path"].kind == "text or list of text"
    assert settings_at("clip.frames")["frames"].default == "16"
    assert settings_at("output")["output"].default == "runs/NAME"
    assert "tiny" in settings_at("backbone.preset")["preset"].kind


def test_tasks_are_those_of_the_verb():
    titles = [section.title for section in sections_of("task")]
    assert titles.count("task, name: classify") == 1
    by_verb = {
        section.title: next(one.kind for one in section.settings if one.name == "task")
        for section in all_sections()
        if section.title.startswith("a recipe") and "probe" not in section.title
    }
    assert "classify" in by_verb["a recipe of `verb: train`"]
    assert "classify" not in by_verb["a recipe of `verb: tokenizer`"]
    assert "probe_bank" not in json.dumps(by_verb)


@pytest.mark.parametrize("entry", list_recipes(), ids=lambda entry: entry.path.stem)
def test_every_value_of_a_shipped_recipe_is_described(entry):
    read = read_probe_recipe if entry.verb == "probe" else read_recipe
    raw = read(str(entry.path)).model_dump(mode="json")
    known = {
        f"{section.path}.{setting.name}".lstrip(".")
        for section in all_sections()
        for setting in section.settings
    }
    for key, value in raw.items():
        assert key in known
        if isinstance(value, dict) and key not in ("tokenizer", "target_tokenizer", "task"):
            assert {f"{key}.{name}" for name in value if name != "name"} <= known


def test_an_unknown_section_names_the_nearest():
    with pytest.raises(UserError, match=r"no section or setting 'trainig'. Did you mean training"):
        sections_of("trainig")
