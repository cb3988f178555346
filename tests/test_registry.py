from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from toto.errors import UserError
from toto.registry import Component, Registry, import_plugin
from toto.tokenizers.config import TOKENIZERS, DvaeConfig

PLUGIN = Path(__file__).parent / "plugins" / "parts.py"


def run_toto(*arguments, cwd, path=None):
    environment = {"PATH": "/usr/bin:/bin"} | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run(
        [sys.executable, "-m", "toto.cli", *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True,
    )  # fmt: skip


def test_a_component_round_trips_with_its_name():
    config = TOKENIZERS.parse({"name": "dvae", "num_codes": 32})
    assert isinstance(config, DvaeConfig)
    assert TOKENIZERS.parse(config.model_dump(mode="json")) == config
    assert TOKENIZERS.parse("patch").registered_name == "patch"


def test_a_name_taken_by_another_class_is_refused():
    registry: Registry[Component] = Registry("part", builtins="toto.registry")
    registry.register("x")(type("Part", (Component,), {}))
    with pytest.raises(UserError, match=r"part 'x' is already registered by \S+Part\. "):
        registry.register("x")(DvaeConfig)


def test_a_plugin_does_not_replace_a_builtin_of_the_same_class_name(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from toto.api import TokenizerConfig, register_tokenizer\n"
        "@register_tokenizer('dvae')\n"
        "class DvaeConfig(TokenizerConfig): pass\n"
    )
    with pytest.raises(UserError, match=r"registered by toto\.tokenizers\.config\.DvaeConfig"):
        import_plugin("mine.py", tmp_path)
    assert TOKENIZERS.get("dvae") is DvaeConfig


def test_files_of_one_name_are_two_plugins_and_each_is_imported_once(tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        (folder / "mine.py").write_text("open(__file__ + '.ran', 'a').write('x')\n")
    for reference in ("a/mine.py", "b/mine.py", "a/../a/mine.py", "b/mine.py"):
        import_plugin(reference, tmp_path)
    assert [(tmp_path / name / "mine.py.ran").read_text() for name in "ab"] == ["x", "x"]


@pytest.mark.parametrize(
    "reference", ["no_such_module", "json.typo", "json.decoder.typo", "", ".a"]
)
def test_a_missing_module_is_refused(tmp_path, reference):
    with pytest.raises(UserError, match=rf"no module '{reference}'"):
        import_plugin(reference, tmp_path)


def test_what_a_plugin_itself_misses_is_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import no_such_module_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_here"):
        import_plugin("needs_more", tmp_path)


def test_an_unknown_name_lists_the_names_and_guesses():
    with pytest.raises(KeyError, match=r"there are .*dvae.*Did you mean 'dvae'"):
        TOKENIZERS.get("dvea")


def test_a_plugin_that_breaks_on_import_shows_its_own_error(tmp_path):
    (tmp_path / "broken.py").write_text("raise ZeroDivisionError('mine')\n")
    with pytest.raises(ZeroDivisionError, match="mine"):
        import_plugin("broken.py", tmp_path)


@pytest.mark.parametrize(
    ("part", "name"), [("tokenizer", "grey"), ("backbone", "running_mean"), ("head", "max")]
)
def test_parts_outside_the_repository_keep_their_contract(tmp_path, part, name):
    (tmp_path / "parts.py").write_text(PLUGIN.read_text())
    argument = "{name: running_mean, width: 8, num_layers: 2}" if part == "backbone" else name
    done = run_toto("check", part, argument, "--import", "parts.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "holds:" in done.stdout


def test_parts_are_found_by_entry_point(tmp_path):
    (tmp_path / "their_parts.py").write_text(PLUGIN.read_text())
    info = tmp_path / "their_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[toto.plugins]\ntheirs = their_parts\n")
    done = run_toto("list", "tokenizers", cwd=tmp_path, path=tmp_path)
    assert "grey" in done.stdout, done.stderr
    done = run_toto("check", "head", "max", cwd=tmp_path, path=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_broken_entry_point_is_named(tmp_path):
    info = tmp_path / "bad-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[toto.plugins]\nbad = no_such_module\n")
    done = run_toto("list", "heads", cwd=tmp_path, path=tmp_path)
    assert done.returncode == 2
    assert "the plug-in 'bad' (no_such_module) cannot be imported" in done.stderr


def test_a_broken_contract_says_what_was_expected(tmp_path):
    text = PLUGIN.read_text().replace("return features_BLD.amax(1)", "return features_BLD.amax(2)")
    (tmp_path / "parts.py").write_text(text)
    done = run_toto("check", "head", "max", "--import", "parts.py", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        "contract broken: forward returned [2, 10] for features of shape [2, 10, 32]" in done.stderr
    )
