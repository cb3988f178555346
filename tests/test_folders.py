"""Folders of results: whole or absent, and nothing of the user's in them is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from toto.errors import RunError, UserError
from toto.files import replacing, resumed_folder, sole_writer, write_atomic
from toto.folders import MARKER, held_folder, is_whole, new_folder, results_in

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, **files: str) -> None:
    """Write a result as a command does; `__` in a name is a slash, `_` the dot of its ending."""
    with held_folder(folder, "toto x") as held, new_folder(held) as unfinished:
        for name, text in files.items():
            path = unfinished / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MARKER
    }


def test_files_that_toto_wrote_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, a_png="1", masks__one__0_png="1", summary_json="1")
    assert json.loads((out / MARKER).read_text())["files"] == [
        "a.png", "masks/one/0.png", "summary.json",
    ]  # fmt: skip
    write(out, b_png="2", masks__two__0_png="2", summary_json="2")
    assert contents(out) == {"b.png": "2", "masks/two/0.png": "2", "summary.json": "2"}
    assert not (out / "masks/one").exists()
    assert results_in(out) == ["b.png", "masks", "summary.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["summary.json", "masks/0.png", "sample-1.png", "notes.txt"])
def test_files_of_the_user_are_in_the_way_whatever_their_names(tmp_path: Path, name: str) -> None:
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match=f"holds {name}, which toto x did not write"):
        write(tmp_path / "out", summary_json="1")
    assert contents(tmp_path / "out") == {name: "mine"}


def test_a_file_added_during_the_work_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, summary_json="1", old_png="1")
    with held_folder(out, "toto x") as held, new_folder(held) as unfinished:
        (unfinished / "summary.json").write_text("2")
        (out / "notes.txt").write_text("mine")
    assert contents(out) == {"summary.json": "2", "notes.txt": "mine"}

    def collide() -> None:
        (out / "notes.txt").unlink()
        with held_folder(out, "toto x") as held, new_folder(held) as unfinished:
            (unfinished / "new.txt").write_text("3")
            (out / "new.txt").write_text("mine")

    with pytest.raises(RunError, match=r"new\.txt is there, and toto did not write it"):
        collide()
    assert contents(out) == {"summary.json": "2", "new.txt": "mine"}


def test_a_marker_cannot_name_files_outside(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    for name in ("../precious", str(tmp_path / "precious"), "a/../../precious"):
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        (out / MARKER).write_text(json.dumps({"files": [name]}))
        with pytest.raises(UserError, match="is not below the folder"):
            write(out, summary_json="1")
    (out / MARKER).write_text(json.dumps({"files": ["link/precious"]}))
    (out / "link").symlink_to(tmp_path)
    write(out, summary_json="1")
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_link_and_an_empty_folder_keep_their_place(tmp_path: Path) -> None:
    """As a mount point does, which cannot be renamed and whose parent may refuse files."""
    disk = tmp_path / "parent" / "disk"
    disk.mkdir(parents=True)
    (disk / "lost+found").mkdir()
    inode = disk.stat().st_ino
    (tmp_path / "out").symlink_to(disk)
    for text in "12":
        write(tmp_path / "out", summary_json=text)
    assert (tmp_path / "out").is_symlink()
    assert disk.stat().st_ino == inode
    assert contents(disk) == {"summary.json": "2"}
    assert (disk / "lost+found").is_dir()
    assert [path.name for path in (tmp_path / "parent").iterdir()] == ["disk"]


def test_what_was_left_in_the_middle_of_a_replacement_is_known_and_replaced(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write(out, summary_json="1", a_png="1")
    replace = type(out).replace

    def killed(path, target):
        if target == out / "summary.json":
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(out), "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write(out, summary_json="2", b_png="2")
    assert not is_whole(out)
    assert not (out / "summary.json").exists(), "a record without its figures would look whole"
    write(out, summary_json="3")
    assert is_whole(out)
    assert contents(out) == {"summary.json": "3"}


def test_the_second_process_on_an_output_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    program = (
        "import sys\nfrom pathlib import Path\nfrom toto.files import sole_writer\n"
        "with sole_writer(Path(sys.argv[1])):\n    print('held', flush=True)\n    input()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, out],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"being written by process {holder.pid} on .*Wait for it"):
        write(out, a_png="1")
    holder.kill()
    holder.communicate()
    write(out, a_png="1")
    assert os.listdir(out.parent) == ["out"]


def test_a_refused_output_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), held_folder(tmp_path / "a/b/out", "toto x"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_planted_links_are_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    home = tmp_path / "home"
    home.mkdir()
    for name in (".a.partial", ".a.12345678.partial", ".a.writing"):
        (home / name).symlink_to(precious)
    write_atomic(home / "a", "text")
    assert not (home / "a").is_symlink()
    with pytest.raises(RunError, match="a cannot be written"), sole_writer(home / "a"):
        pass
    (home / "work").symlink_to(tmp_path)
    with pytest.raises(UserError, match="no folder of yours"):
        resumed_folder(home / "work")
    assert precious.read_text() == "mine"
    assert (home / ".a.12345678.partial").is_symlink()


def test_what_a_killed_writer_left_is_removed_and_what_is_in_use_stays(tmp_path: Path) -> None:
    (tmp_path / ".a.0123abcd.partial").mkdir()
    (tmp_path / ".a.0123abcd.partial/a").write_text("half")
    with replacing(tmp_path / "a") as first:
        assert [path.name for path in tmp_path.iterdir()] == [first.parent.name]
        assert first.parent.stat().st_mode & 0o77 == 0
        first.write_text("first")
        write_atomic(tmp_path / "a", "second")
        assert first.read_text() == "first", "it is locked by its writer"
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "first"


@contextmanager
def small_files():
    """Every file of this process ends at 4 KiB, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_message_whatever_library_writes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    def with_safetensors() -> None:
        with held_folder(tmp_path / "out", "toto x") as out, new_folder(out) as unfinished:
            save_file({"x": torch.zeros(4096)}, unfinished / "x.safetensors")

    with small_files(), pytest.raises(RunError, match=r"out cannot be written: .*Make room"):
        with_safetensors()
    with small_files(), pytest.raises(RunError, match=r"out cannot be written: .*Make room"):
        write(tmp_path / "out", a_txt="x" * 10000)
    assert not list(tmp_path.iterdir())
