"""Which commit a folder is at."""

import subprocess

from toto.jobs.commits import commit_of


def test_a_folder_whose_name_holds_a_line_separator(tmp_path):
    folder = tmp_path / "one\u2028two"
    folder.mkdir()
    user = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], [*user, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", folder, *command], check=True)
    found = commit_of(folder)
    assert found is not None
    assert found.folder == str(folder.resolve())
    assert len(found.commit) == 40
