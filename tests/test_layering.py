"""Who may import whom (docs/design: high to low); siblings do not import each other."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A part may import those of a lower rank, and itself.
RANKS = {
    "cli": 10,
    "loaded": 10,
    "jobs": 9, "api": 9,
    "robot": 8, "analysis": 8, "export": 8,
    "evaluation": 7, "generation": 7,
    "recipe": 6,
    "testing": 5, "tasks": 5,
    "training": 4, "data": 4,
    "model": 3, "model_size": 3,
    "tokenizers": 2, "backbones": 2, "heads": 2,
    "layers": 1,
    "sequence": 0, "folders": 0,
    "registry": -1, "files": -1, "terminal": -1, "processes": -1,
    "checksums": -1,
    "tensor_names": -2,
    "errors": -2, "wording": -2,
}  # fmt: skip
TORCH_FREE = [
    "cli", "toto/recipe", "toto/registry.py", "toto/errors.py", "toto/jobs/inspect.py",
    "toto/terminal.py",
    "toto/jobs/runs.py", "toto/jobs/history.py", "toto/jobs/commits.py", "toto/training/lock.py",
    "toto/training/checkpoint_folder.py",
    "toto/jobs/plan.py", "toto/analysis/devices.py", "toto/analysis/gpu_memory.py",
    "toto/analysis/memory_terms.py", "toto/analysis/plan.py", "toto/analysis/plan_data.py",
    "toto/backbones/memory.py", "toto/layers/chunks.py", "toto/tokenizers/official.py",
    "toto/tokenizers/size.py",
]  # fmt: skip


def part_of(module: str) -> str:
    return module.split(".")[1]


def toto_imports(path: Path, *, top_level_only: bool = False) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = runtime_nodes(tree) if top_level_only else ast.walk(tree)
    modules = []
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            modules.append(node.module)
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    return modules


def runtime_nodes(tree: ast.Module) -> list[ast.stmt]:
    return [node for node in tree.body if not isinstance(node, ast.If)]


def breaches(files: dict[str, Path]) -> list[str]:
    found = []
    for module, path in files.items():
        rank = RANKS[part_of(module)]
        for imported in toto_imports(path):
            if not imported.startswith("toto.") or part_of(imported) == part_of(module):
                continue
            if RANKS[part_of(imported)] >= rank:
                found.append(f"{module} imports {imported}")
    return found


def project_files() -> dict[str, Path]:
    files = {}
    for folder, prefix in ((ROOT / "toto", "toto"), (ROOT / "cli", "toto.cli")):
        for path in folder.rglob("*.py"):
            relative = path.relative_to(folder).with_suffix("")
            module = ".".join([prefix, *relative.parts])
            if module != "toto.__init__":
                files[module] = path
    return files


def test_every_import_goes_down():
    files = project_files()
    assert len(files) > 40
    assert breaches(files) == []


def test_a_planted_breach_is_found(tmp_path):
    planted = tmp_path / "llama.py"
    planted.write_text("from toto.tokenizers.dvae import Dvae\nimport toto.jobs.train\n")
    assert len(breaches({"toto.backbones.planted": planted})) == 2


@pytest.mark.parametrize("place", TORCH_FREE)
def test_torch_free_parts_import_no_torch_at_the_top(place):
    path = ROOT / place
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert files
    for file in [*files, *ROOT.glob("toto/*/config.py")]:
        for imported in toto_imports(file, top_level_only=True):
            assert imported.split(".")[0] not in {"torch", "transformers", "av"}, file


def test_every_package_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "toto").rglob("*.py")
    }
    assert found - {"toto.cli"} <= set(listed)
