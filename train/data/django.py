"""The corpus in the cache: built on first use from the pinned archive, then read as JSONL files.

`python -m train.data.django` builds it if needed and prints how many rows each part has.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from train.data.corpus import AnyRow, build_parts, split_sources
from train.data.download import cache_dir, fetch_archive, read_sources
from train.data.rows import DataError
from train.files import atomic_folder

# Part of the folder's name: raise it with every change of what the code builds, and the corpus is built anew.
CORPUS_VERSION = 3

PARTS: dict[str, tuple[str, ...]] = {
    "text": ("train",),
    "instructions": ("train",),
    "retrieval": ("train", "test"),
    "crosslingual": ("train", "test"),
    "sts": ("train", "test"),
}


def corpus_file(part: str, split: str) -> Path:
    """The JSONL file of one part and split; builds the corpus if the cache lacks it. DataError for unknown names."""
    if part not in PARTS:
        raise DataError(f"django:{part}: there is no such part; taken: {', '.join(PARTS)}")
    if split not in PARTS[part]:
        raise DataError(f"django:{part}: there is no split {split!r}; taken: {', '.join(PARTS[part])}")
    return corpus_folder() / _file_name(part, split)


def corpus_folder() -> Path:
    """The folder of the built corpus. Built under another name, renamed once complete: there whole or not at all."""
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
    """Builds all parts from the archive and writes them into an existing, empty folder."""
    sources = split_sources(read_sources(fetch_archive()))
    parts = build_parts(sources)
    for (part, split), rows in tqdm(parts.items(), desc="writing the corpus", unit="file", delay=1):
        _write_jsonl(folder / _file_name(part, split), rows)


def _file_name(part: str, split: str) -> str:
    return f"{part}.{split}.jsonl"


def _write_jsonl(path: Path, rows: Sequence[AnyRow]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            record = {name: value for name, value in asdict(row).items() if value is not None and value != ()}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def main() -> None:
    """Prints the number of rows per part and split, and per language of the cross-lingual part."""
    languages: dict[str, Counter[str]] = {}
    for part, splits in PARTS.items():
        for split in splits:
            with corpus_file(part, split).open(encoding="utf-8") as file:
                records = [json.loads(line) for line in file]
            print(f"{part:14}{split:7}{len(records):8,}")
            if part == "crosslingual":
                languages[split] = Counter(record["language"] for record in records)
    print("\ncrosslingual     train    test")
    for language, count in sorted(languages["train"].items(), key=lambda item: (-item[1], item[0])):
        print(f"{language:14}{count:8,}{languages['test'][language]:8,}")


if __name__ == "__main__":
    main()
