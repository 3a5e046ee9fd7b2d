"""Training rows from the built-in corpus, a file, a folder saved by `datasets`, or the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from train.data.django import corpus_file
from train.data.parse import REQUIRED, RowParser, check_columns, shown
from train.data.rows import DataError, Row

_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?")
_TAKEN = (
    "taken: django:PART, a .jsonl, .json (one object per line) or .parquet file, a folder saved by datasets' "
    "save_to_disk, or a hub name such as owner/name or owner/name:config"
)


def load_rows(
    source: str, kind: type[Row], *, split: str = "train", columns: Mapping[str, str] | None = None
) -> list[Row]:
    """All rows of a data source, checked one by one.

    source: "django:text", "django:instructions", "django:retrieval", "django:crosslingual", "django:sts"; or a .jsonl,
        .json (one object per line) or .parquet file; or a folder saved by `datasets`; or a hub name, "owner/name" or
        "owner/name:config". A hub data set never runs code of its own.
    kind: Text (text), Pair (query, positive; optional negatives and/or negative, negative_1, ...; language,
        teacher_score), Scored (a, b, score) or Instruction (instruction, input, output; optional language). Instruction
        rows may be asked for as Pair: query = instruction and input, positive = output (paper, stage 3).
    split: of the built-in corpus, the hub, or a saved folder with several; a file or a single table is taken whole.
    columns: {our column name: their column name}.

    Raises DataError (a ValueError) that names source, row (counted from 1; in JSONL the line) and what is wrong;
    ValueError for a name in `columns` that the kind does not have; TypeError for another kind.
    """
    if kind not in REQUIRED:
        raise TypeError(f"kind: got {kind!r}; taken: {', '.join(known.__name__ for known in REQUIRED)}")
    columns = dict(columns or {})
    check_columns(kind, columns)
    if source.startswith("django:"):
        path = corpus_file(source.removeprefix("django:"), split)
        return _to_rows(source, _read_jsonl(path), kind, columns)
    return _to_rows(source, _records(source, split), kind, columns)


def _records(source: str, split: str) -> Iterator[tuple[int, Any]]:
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    if path.is_dir():
        return _read_saved(path, split)
    if path.is_file():
        if suffix == ".parquet":
            return _read_parquet(path)
        if suffix in (".jsonl", ".json"):
            return _read_jsonl(path)
        raise DataError(f"{source}: unknown kind of file {suffix!r}; {_TAKEN}")
    name = _HUB_NAME.fullmatch(source)
    if suffix in (".parquet", ".jsonl", ".json") or not name:
        raise DataError(f"{source}: there is no such file or folder; {_TAKEN}")
    return _read_hub(name[1], name[2], split)


def _to_rows(source: str, records: Iterable[tuple[int, Any]], kind: type[Row], columns: Mapping[str, str]) -> list[Row]:
    rows: list[Row] = []
    parser: RowParser[Row] | None = None
    for number, record in tqdm(records, desc=f"loading {source}", unit=" rows", unit_scale=True, delay=2):
        if parser is None:
            # A file's columns are those of its first row.
            if not isinstance(record, Mapping):
                raise DataError(f"{source}, row {number}: expected an object with named columns, got {shown(record)}")
            parser = RowParser(source, kind, record.keys(), columns)
        rows.append(parser.parse(record, number))
    if not rows:
        raise DataError(f"{source}: there are no rows in it")
    return rows


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, object) of every line that is not blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8").strip())
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, row {number}: not UTF-8: {error.reason} at byte {error.start}") from None
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}, row {number}: invalid JSON on line {number}, column {error.colno}: {error.msg} "
                    "(one object per line is taken)"
                ) from None
            except ValueError as error:  # a number of thousands of digits
                raise DataError(f"{path}, row {number}: invalid JSON on line {number}: {error}") from None
            except RecursionError:
                raise DataError(f"{path}, row {number}: JSON nested too deeply") from None
            yield number, record


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=4096):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error


def _read_saved(path: Path, split: str) -> Iterator[tuple[int, Any]]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not a folder saved by datasets' save_to_disk: {error}") from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise DataError(f"{path}: there is no split {split!r}; it has {', '.join(saved)}")
        saved = saved[split]
    yield from enumerate(saved, start=1)


def _read_hub(name: str, config: str | None, split: str) -> Iterator[tuple[int, Any]]:
    import datasets

    try:
        loaded = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the hub's client has dozens of kinds for network, access, name, config and split
        label = f"{name}:{config}" if config else name
        raise DataError(
            f"{label}: neither a file nor a hub data set that can be read (split {split!r}): "
            f"{type(error).__name__}: {error}"
        ) from error
    yield from enumerate(loaded, start=1)
