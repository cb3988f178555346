"""Files are whole or absent."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from toto.errors import RunError
from toto.files import disk_errors, no_empty_folder, replacing, write_atomic

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_appears_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_atomic(target, "old")

    def fail() -> None:
        with disk_errors(target), replacing(target) as unfinished:
            unfinished.write_text("ne")
            assert target.read_text() == "old"
            raise OSError("disk full")

    with pytest.raises(RunError, match=r"a\.txt cannot be written: disk full\. Make room"):
        fail()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    write_atomic(target, "new")
    assert target.read_text() == "new"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    target = tmp_path / "none" / "a.txt"
    with pytest.raises(RunError, match=r"none/a\.txt cannot be written"), disk_errors(target):
        write_atomic(target, "text")
    assert not list(tmp_path.iterdir())


def test_files_of_other_libraries_get_the_permissions_of_the_umask(tmp_path: Path) -> None:
    program = (
        "import torch, sys\n"
        "from pathlib import Path\n"
        "from safetensors.torch import save_file\n"
        "from toto.files import replacing, write_atomic\n"
        "with replacing(Path('a')) as unfinished:\n"
        "    save_file({'x': torch.zeros(2)}, unfinished)\n"
        "write_atomic(Path('b'), 'text')\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, umask=0o027, check=True)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_new_folders_that_stay_empty_are_removed(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()

    def refused(path: Path, file: str | None) -> None:
        with no_empty_folder(path):
            path.mkdir(parents=True, exist_ok=True)
            if file:
                (path / file).touch()
            raise RunError("refused")

    for path, file in (("old/a/b", None), ("old", None), ("kept/a", "x")):
        with pytest.raises(RunError):
            refused(tmp_path / path, file)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["kept", "kept/a", "kept/a/x", "old"], "old was there before"
