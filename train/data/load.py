"""Load training rows from the demo's corpus, a file, a folder saved by `datasets`, or the Hugging Face hub."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from train.data.django_corpus.cache import corpus_file
from train.data.parse import REQUIRED, RowParser, check_columns, shown
from train.data.rows import DataError, Row

_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?")
_EXPECTED = (
    "expected django:PART, a .jsonl, .json (one object per line) or .parquet file, a folder saved by datasets' "
    "save_to_disk, or a hub name such as owner/name or owner/name:config"
)


def load_rows(
    source: str, kind: type[Row], *, split: str = "train", columns: Mapping[str, str] | None = None
) -> list[Row]:
    """Load and check all rows of a data source.

    Args:
        source: one of
            - "django:text", "django:instructions", "django:retrieval", "django:crosslingual", "django:sts";
            - a .jsonl, .json (one object per line) or .parquet file;
            - a folder saved by `datasets`;
            - a hub name, "owner/name" or "owner/name:config" (code of the data set never runs).
        kind: the row type, with the columns
            - Text: text;
            - Pair: query, positive; optional negatives and/or negative, negative_1, ...; language; teacher_score;
            - Scored: a, b, score;
            - Instruction: instruction, input, output; optional language. Such rows also load as Pair: the query is
              instruction and input, the positive is the output (paper, stage 3).
        split: of the demo's corpus, the hub, or a saved folder with several splits; ignored for single tables.
        columns: our column name -> the column's name in the source, where they differ.

    Raises:
        DataError: names the source, the row (counted from 1; for JSONL the line) and the problem.
        ValueError: `columns` has a name that is not a column of this kind.
        TypeError: unknown kind.
    """
    if kind not in REQUIRED:
        raise TypeError(f"kind: got {kind!r}; expected one of {', '.join(known.__name__ for known in REQUIRED)}")
    columns = dict(columns or {})
    check_columns(kind, columns)
    return _to_rows(source, _records(source, split), kind, columns)


def _records(source: str, split: str) -> Iterator[tuple[int, Any]]:
    if source.startswith("django:"):
        return _read_jsonl(corpus_file(source.removeprefix("django:"), split))
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    if path.is_dir():
        return _read_saved(path, split)
    if path.is_file():
        if suffix == ".parquet":
            return _read_parquet(path)
        if suffix in (".jsonl", ".json"):
            return _read_jsonl(path)
        raise DataError(f"{source}: unsupported file type {suffix!r}; {_EXPECTED}")
    name = _HUB_NAME.fullmatch(source)
    if suffix in (".parquet", ".jsonl", ".json") or not name:
        raise DataError(f"{source}: file or folder not found; {_EXPECTED}")
    return _read_hub(name[1], name[2], split)


def _to_rows(source: str, records: Iterable[tuple[int, Any]], kind: type[Row], columns: Mapping[str, str]) -> list[Row]:
    rows: list[Row] = []
    parser: RowParser[Row] | None = None
    for number, record in tqdm(records, desc=f"loading {source}", unit=" rows", unit_scale=True, delay=2):
        if parser is None:
            # The first row decides which columns the source has.
            if not isinstance(record, Mapping):
                raise DataError(f"{source}, row {number}: expected an object with named columns, got {shown(record)}")
            parser = RowParser(source, kind, record.keys(), columns)
        rows.append(parser.parse(record, number))
    if not rows:
        raise DataError(f"{source}: contains no rows")
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
                    "(expected one object per line)"
                ) from None
            except ValueError as error:  # a number with thousands of digits
                raise DataError(f"{path}, row {number}: invalid JSON on line {number}: {error}") from None
            except RecursionError:
                raise DataError(f"{path}, row {number}: JSON nested too deeply") from None
            yield number, record


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=4096))
            yield from enumerate((record for batch in batches for record in batch), start=1)
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
            raise DataError(f"{path}: unknown split {split!r}; expected one of {', '.join(saved)}")
        saved = saved[split]
    yield from enumerate(saved, start=1)


def _read_hub(name: str, config: str | None, split: str) -> Iterator[tuple[int, Any]]:
    import datasets

    try:
        loaded = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the hub's client raises dozens of types: network, access, name, config, split
        label = f"{name}:{config}" if config else name
        raise DataError(
            f"{label}: neither a file nor a readable hub data set (split {split!r}): {type(error).__name__}: {error}"
        ) from error
    yield from enumerate(loaded, start=1)
