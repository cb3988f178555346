"""Checksums of files: computed once, noticed when a file changes, skipped on request."""

import hashlib
import os

from toto import checksums
from toto.checksums import SKIP_VARIABLE, sha256_of, verification_skipped


def test_a_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"first")
    os.utime(path, ns=(0, 0))
    first = sha256_of(path)
    assert first == hashlib.sha256(b"first").hexdigest()

    hashed = []
    digest = hashlib.file_digest
    monkeypatch.setattr(checksums.hashlib, "file_digest", lambda *a: hashed.append(1) or digest(*a))
    assert sha256_of(path) == first
    assert not hashed
    path.write_bytes(b"other")
    assert sha256_of(path) == hashlib.sha256(b"other").hexdigest()


def test_what_was_just_written_is_not_remembered(tmp_path):
    path = tmp_path / "file"
    for content in (b"first", b"other"):
        path.write_bytes(content)
        os.utime(path, ns=(10**18, os.stat(tmp_path).st_mtime_ns))  # the same time for both
        assert sha256_of(path) == hashlib.sha256(content).hexdigest()


def test_a_skipped_verification_is_logged(monkeypatch, caplog):
    assert not verification_skipped("a")
    monkeypatch.setenv(SKIP_VARIABLE, "1")
    assert verification_skipped("a")
    assert verification_skipped("a")
    assert caplog.messages == ["TOTO_SKIP_CHECKSUMS is set: the checksums of a are not verified"]
