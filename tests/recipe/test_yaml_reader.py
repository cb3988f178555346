from __future__ import annotations

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from toto.errors import RecipeError
from toto.recipe.reader import read_recipe
from toto.recipe.yaml_reader import dump_yaml, parse_value, quote, read_yaml

LIKE_NUMBERS = st.from_regex(r"[-+]?[0-9._eEx:]{1,9}", fullmatch=True)
SPECIAL = st.text("\ud800\udc80\u202e\x85\ufeff\t \r\n:#-'\"\\&*!|>%@`~e1\x1b😀")
WORDS = st.sampled_from(
    [
        "~",
        "null",
        "NO",
        "on",
        "off",
        "y",
        "0x1f",
        "1_000",
        "1:30",
        "<<",
        "=",
        ".inf",
        "2026-01-01",
        "---",
        "?",
        "-",
    ]
)
STRINGS = st.one_of(st.text(), LIKE_NUMBERS, SPECIAL, WORDS)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e6", 1e6),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        ("10", 10),
        ("1:30", "1:30"),
        ("off", "off"),
        ("yes", "yes"),
        ("true", True),
        ("null", None),
        ("0o7", "0o7"),
        ("[1, 2e-3]", [1, 2e-3]),
        ("1.2.3", "1.2.3"),
        ("5YkINInb29k", "5YkINInb29k"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_a_duplicate_key_is_refused_with_its_line(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("a: 1\nb:\n  c: 1\n  c: 2\n")
    with pytest.raises(RecipeError, match=r"line 4: the key 'c' stands twice"):
        read_yaml(path)


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "just words"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match="not a mapping"):
        read_yaml(path)


def test_broken_yaml_names_the_line(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("a: 1\nb: [1, 2\nc: 3\n")
    with pytest.raises(RecipeError, match="line 3"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: \x07\n", r"line 2: the character '\\x07' may not stand in YAML"),
        ("a: 1\n? [b]\n: 1\n", r"line 2: \['b'\] cannot be a key"),
        ("a: !!int x\n", "invalid literal"),
        (f"a: {'1' * 5000}\n", "digits"),
    ],
)
def test_what_yaml_cannot_hold_is_refused(tmp_path, text, message):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_yaml(path)


@pytest.mark.parametrize("number", [1e-8, 3e-4, 1e20, 0.1, 5.0])
def test_floats_survive_a_dump(tmp_path, number):
    path = tmp_path / "r.yaml"
    path.write_text(dump_yaml({"x": number}))
    assert read_yaml(path) == {"x": number}


def doubled(times):
    """Each line holds ten times what the line above it does."""
    lines = ["a0: &a0 x"]
    for n in range(times):
        lines.append(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (doubled(9), "line 6: with its aliases written out it has more than 100,000 values"),
        ("a: " + "[" * 100_000, "line 1: values are nested more than 50 deep"),
        ("a: " + "{b: " * 5_000, "line 1: values are nested more than 50 deep"),
        ("a: &a\n  b: [*a]\n", "line 2: the value &a contains itself"),
        ("a: " + "x" * 2**20, "1,048,579 characters; at most 1,048,576 are read"),
    ],
)
def test_what_would_outgrow_memory_is_refused(tmp_path, text, message):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_yaml(path)


def test_aliases_that_stay_small_are_read():
    value = parse_value(doubled(3))
    assert value["a3"] == [[["x"] * 10] * 10] * 10


@given(STRINGS, STRINGS)
@example("1e3", "08")
@example("12e4567", "7e02")  # git hashes
@example("a\x1b[31m", "\udcff")
def test_every_string_is_read_back_as_it_was(key, text):
    written = dump_yaml({key: [text]})
    written.encode()
    assert parse_value(written) == {key: [text]}
    assert yaml.safe_load(written) == {key: [text]}, "a reader of YAML 1.1"
    assert not set(written) & set("\x1b\r\u202e\x85")
    assert parse_value(quote(text)) == text
    assert "\n" not in quote(text)


@given(st.floats(allow_nan=False) | st.integers() | st.booleans() | st.none())
def test_every_other_value_is_read_back_as_it_was(value):
    for read in (parse_value, yaml.safe_load):
        found = read(dump_yaml({"a": value}))["a"]
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize("name", ["1e3", "08", "12e4567", "no", "2026-01-01", "😀 \u202e"])
def test_the_recipe_of_a_run_is_read_back_with_the_same_strings(tmp_path, name):
    asked = [f"{key}={quote(name)}" for key in ("name", "title", "data.sources.a.path", "output")]
    asked += ["data.sources.a.weight=1"]
    recipe = read_recipe("quickstart", asked)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_yaml(recipe.model_dump(mode="json")), encoding="utf-8")
    again = read_recipe(str(path), [])
    assert again == recipe
    assert (again.name, again.title, again.output) == (name, name, name)
    assert again.data.sources["a"].path == name
