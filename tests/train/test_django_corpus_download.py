"""Fetching the pinned archive: the real download, and each way it can fail."""

from __future__ import annotations

import hashlib
import importlib.util

import pytest

from train.data.django_corpus import download
from train.data.load import load_rows
from train.data.rows import DataError, Text


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONAN_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def visible(folder) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


def test_cache_dir(empty_cache, monkeypatch, tmp_path) -> None:
    assert download.cache_dir() == empty_cache
    assert empty_cache.is_dir()
    monkeypatch.delenv("CONAN_FAST_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert download.cache_dir() == tmp_path / "home" / ".cache" / "conan_fast"


@pytest.mark.proof  # downloads with pip
def test_download_into_an_empty_cache(empty_cache) -> None:
    (empty_cache / "django" / "download-left-by-a-killed-process").mkdir(parents=True)
    archive = download.fetch_archive()
    assert archive == empty_cache / "django" / "Django-5.2.tar.gz"
    assert visible(archive.parent) == [archive.name]
    paths = [path for path, _ in download.read_archive(archive)]
    assert sum(path.endswith(".txt") for path in paths) == 619
    assert "docs/topics/db/queries.txt" in paths
    assert "django/conf/locale/de/LC_MESSAGES/django.po" in paths
    assert not [path for path in paths if path.startswith("tests/")]
    assert visible(archive.parent) == [archive.name]


def test_corrupt_file_in_the_cache(empty_cache) -> None:
    archive = empty_cache / "django" / "Django-5.2.tar.gz"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"not the archive")
    with pytest.raises(DataError) as raised:
        load_rows("django:text", Text)
    message = str(raised.value)
    assert str(archive) in message
    assert f"expected {download.ARCHIVE_SHA256}" in message
    assert f"found {hashlib.sha256(b'not the archive').hexdigest()}" in message
    assert "Delete the file" in message
    assert visible(archive.parent) == [archive.name]


def test_download_with_another_hash_is_refused(empty_cache, monkeypatch) -> None:
    monkeypatch.setattr(download, "ARCHIVE_SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"pip could not download Django==5\.2 \(exit code 1") as raised:
        download.fetch_archive()
    assert str(empty_cache / "django" / "Django-5.2.tar.gz") in str(raised.value)
    assert visible(empty_cache / "django") == []


def test_environment_without_pip(empty_cache, monkeypatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name))
    with pytest.raises(DataError) as raised:
        download.fetch_archive()
    for part in ("no pip", "Django-5.2.tar.gz", download.ARCHIVE_SHA256, str(empty_cache / "django")):
        assert part in str(raised.value)
