"""Parse one record of a file (column name -> value) into a row, or raise an error that names the problem."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic

from train.data.rows import DataError, Instruction, Pair, Row, Scored, Text

_Parse = Callable[[Mapping[str, Any]], Text | Pair | Scored | Instruction]

_NEGATIVE = re.compile(r"negative(?:_(\d+))?")

# Required and optional columns of each row type.
REQUIRED: dict[type, tuple[str, ...]] = {
    Text: ("text",),
    Pair: ("query", "positive"),
    Scored: ("a", "b", "score"),
    Instruction: ("instruction", "input", "output"),
}
_OPTIONAL: dict[type, tuple[str, ...]] = {
    Text: (),
    Pair: ("negatives", "negative", "negative_1, negative_2, ...", "language", "teacher_score"),
    Scored: (),
    Instruction: ("language",),
}


class RowParser(Generic[Row]):
    """Parses the records of one file into rows of one kind. Columns that the kind does not have are ignored."""

    def __init__(self, source: str, kind: type[Row], present: Collection[str], columns: Mapping[str, str]) -> None:
        """
        Args:
            present: the column names of the file.
            columns: our column name -> the file's, where they differ.

        Raises:
            DataError: a required column is missing.
        """
        self._source = source
        self._columns = columns
        # By column names, as the rows of a JSONL file may differ in them.
        self._negative_columns: dict[tuple[str, ...], list[str]] = {}
        self._parse: _Parse
        if self._has_all(kind, present):
            parsers: dict[type, _Parse] = {
                Text: self._text,
                Pair: self._pair,
                Scored: self._scored,
                Instruction: self._instruction,
            }
            self._parse = parsers[kind]
        elif kind is Pair and self._has_all(Instruction, present):
            self._parse = lambda record: self._instruction(record).as_pair()
        else:
            problem = f"{source}: columns {_listed(present)} do not make a {kind.__name__}"
            raise DataError(f"{problem}; {_expected(kind, columns)}")

    def parse(self, record: object, row: int) -> Row:
        """Parse row number `row` (counted from 1). Raises DataError naming source, row and problem."""
        if not isinstance(record, Mapping):
            raise DataError(f"{self._source}, row {row}: expected an object with named columns, got {shown(record)}")
        try:
            return self._parse(record)  # type: ignore[return-value]  # __init__ chose the parser of this kind
        except DataError as error:
            raise DataError(f"{self._source}, row {row}: {error}") from None

    def _has_all(self, kind: type, present: Collection[str]) -> bool:
        return all(self._name(column) in present for column in REQUIRED[kind])

    def _name(self, column: str) -> str:
        return self._columns.get(column, column)

    def _value(self, record: Mapping[str, Any], column: str) -> Any:
        name = self._name(column)
        if name not in record:
            raise DataError(f"column {name!r} is missing; the row has {_listed(record)}")
        return record[name]

    def _string(self, record: Mapping[str, Any], column: str, may_be_empty: bool = False) -> str:
        return _checked_string(self._value(record, column), f"column {self._name(column)!r}", may_be_empty)

    def _number(self, record: Mapping[str, Any], column: str) -> float:
        value, name = self._value(record, column), self._name(column)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise DataError(f"column {name!r} must be a number, got {shown(value)}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise DataError(f"column {name!r} must be a finite number, got {shown(value)}")
        return number

    def _language(self, record: Mapping[str, Any]) -> str:
        if record.get(self._name("language")) is None:
            return "en"
        return self._string(record, "language")

    def _text(self, record: Mapping[str, Any]) -> Text:
        return Text(self._string(record, "text"))

    def _scored(self, record: Mapping[str, Any]) -> Scored:
        return Scored(self._string(record, "a"), self._string(record, "b"), self._number(record, "score"))

    def _instruction(self, record: Mapping[str, Any]) -> Instruction:
        instruction = self._string(record, "instruction", may_be_empty=True)
        task_input = self._string(record, "input", may_be_empty=True)
        if not instruction.strip() and not task_input.strip():
            names = f"{self._name('instruction')!r} and {self._name('input')!r}"
            raise DataError(f"columns {names} are both empty; at least one must contain text")
        return Instruction(instruction, task_input, self._string(record, "output"), self._language(record))

    def _pair(self, record: Mapping[str, Any]) -> Pair:
        scored = record.get(self._name("teacher_score")) is not None
        return Pair(
            self._string(record, "query"),
            self._string(record, "positive"),
            self._pair_negatives(record),
            self._language(record),
            self._number(record, "teacher_score") if scored else None,
        )

    def _pair_negatives(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """The list in `negatives`, then `negative`, `negative_1`, ... in numerical order; null counts as absent."""
        name = self._name("negatives")
        in_list = [] if record.get(name) is None else record[name]
        if not isinstance(in_list, (list, tuple)):
            raise DataError(f"column {name!r} must be a list of strings, got {shown(in_list)}")
        negatives = [_checked_string(text, f"column {name!r}, item {at}") for at, text in enumerate(in_list, start=1)]
        present = tuple(record)
        if present not in self._negative_columns:
            self._negative_columns[present] = _numbered_negatives(present, self._columns)
        for column in self._negative_columns[present]:
            if record.get(column) is not None:
                negatives.append(_checked_string(record[column], f"column {column!r}"))
        return tuple(negatives)


def check_columns(kind: type, columns: Mapping[str, str]) -> None:
    """Raises ValueError if a key of `columns` is not a column of this kind."""
    known = {column for one in _accepted_kinds(kind) for column in (*REQUIRED[one], *_OPTIONAL[one])}
    for column in columns:
        if column not in known and not (kind is Pair and _NEGATIVE.fullmatch(column)):
            raise ValueError(f"columns: {column!r} is not a column of {kind.__name__}; {_expected(kind, {})}")


def _checked_string(value: Any, what: str, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise DataError(f"{what} must be a string, got {shown(value)}")
    if not may_be_empty and not value.strip():
        raise DataError(f"{what} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} is not valid Unicode: lone surrogate at character {error.start}") from None
    return value


def _numbered_negatives(present: Collection[str], columns: Mapping[str, str]) -> list[str]:
    """The file's names of negative, negative_1, negative_2, ... in numerical order."""
    ours = {theirs: our for our, theirs in columns.items()}
    numbered = []
    for name in present:
        match = _NEGATIVE.fullmatch(ours.get(name, name))
        if match:
            numbered.append((int(match[1]) if match[1] else -1, name))
    return [name for _, name in sorted(numbered)]


def _accepted_kinds(kind: type) -> tuple[type, ...]:
    """The row types whose columns make a row of this kind."""
    return (Pair, Instruction) if kind is Pair else (kind,)


def _expected(kind: type, columns: Mapping[str, str]) -> str:
    """The columns of a kind under the file's names, for an error message."""
    names = " or ".join(
        "(" + ", ".join(columns.get(c, c) for c in REQUIRED[one]) + ")" for one in _accepted_kinds(kind)
    )
    optional = ", ".join(columns.get(c, c) for c in _OPTIONAL[kind])
    return f"expected {names}" + (f", optional: {optional}" if optional else "")


def _listed(names: Collection[str]) -> str:
    return "(" + ", ".join(str(name) for name in names) + ")"


def shown(value: object) -> str:
    """A value for an error message: its type and its repr, shortened to 60 characters."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
