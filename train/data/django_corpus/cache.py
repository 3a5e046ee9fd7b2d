"""The corpus on disk: JSONL files in the cache, built from the pinned archive on first use."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from train.data.django_corpus.download import cache_dir, fetch_archive, read_archive
from train.data.django_corpus.parts import AnyRow, build_parts, split_corpus
from train.data.rows import DataError
from train.files import atomic_folder

# Part of the folder's name. Increment it whenever the code builds different rows, so that the corpus is rebuilt.
CORPUS_VERSION = 3

SPLITS: dict[str, tuple[str, ...]] = {
    "text": ("train",),
    "instructions": ("train",),
    "retrieval": ("train", "test"),
    "crosslingual": ("train", "test"),
    "sts": ("train", "test"),
}


def corpus_file(part: str, split: str) -> Path:
    """The JSONL file of a part and split; builds the corpus if necessary. DataError for unknown names."""
    if part not in SPLITS:
        raise DataError(f"django:{part}: unknown part; expected one of {', '.join(SPLITS)}")
    if split not in SPLITS[part]:
        raise DataError(f"django:{part}: unknown split {split!r}; expected one of {', '.join(SPLITS[part])}")
    return corpus_folder() / _file_name(part, split)


def corpus_folder() -> Path:
    """The folder of the built corpus. It is renamed into place once complete, so it is never partially written."""
    parent = cache_dir() / "django"
    parent.mkdir(exist_ok=True)
    folder = parent / f"corpus-v{CORPUS_VERSION}"
    if folder.exists():
        return folder
    with FileLock(parent / ".build.lock"):
        if not folder.exists():
            with atomic_folder(folder) as partial:
                write_corpus(partial)
    return folder


def write_corpus(folder: Path) -> None:
    """Build all parts from the archive and write them into an existing, empty folder."""
    parts = build_parts(split_corpus(read_archive(fetch_archive())))
    for (part, split), rows in tqdm(parts.items(), desc="writing the corpus", unit="file", delay=1):
        _write_jsonl(folder / _file_name(part, split), rows)


def _file_name(part: str, split: str) -> str:
    return f"{part}.{split}.jsonl"


def _write_jsonl(path: Path, rows: Sequence[AnyRow]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            record = {name: value for name, value in asdict(row).items() if value is not None and value != ()}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
