"""One record of a file (column name to value) to one row, or an error that says what is wrong with it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic

from train.data.rows import DataError, Instruction, Pair, Row, Scored, Text

_Maker = Callable[[Mapping[str, Any]], Text | Pair | Scored | Instruction]

_NEGATIVE = re.compile(r"negative(?:_(\d+))?")

# The columns of each kind: those that must be there, those that may.
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
    """Makes rows of one kind from the records of one file.

    `columns` maps our column names to the file's. The names that come are looked at once, here: DataError if they fit
    nothing that `kind` can be made from. Columns that nothing asks for are ignored.
    """

    def __init__(self, source: str, kind: type[Row], came: Collection[str], columns: Mapping[str, str]) -> None:
        self._source = source
        self._columns = columns
        self._negatives: dict[tuple[str, ...], list[str]] = {}  # by a row's columns: rows of JSONL may differ in them
        self._make: _Maker
        if self._has_all(kind, came):
            makers: dict[type, _Maker] = {
                Text: self._text,
                Pair: self._pair,
                Scored: self._scored,
                Instruction: self._instruction,
            }
            self._make = makers[kind]
        elif kind is Pair and self._has_all(Instruction, came):
            self._make = lambda record: self._instruction(record).as_pair()
        else:
            problem = f"{source}: the columns {_listed(came)} do not make a {kind.__name__}"
            raise DataError(f"{problem}; {_taken(kind, columns)}")

    def parse(self, record: object, row: int) -> Row:
        """Row number `row` (counted from 1) from its record; raises DataError naming source, row and what is wrong."""
        if not isinstance(record, Mapping):
            raise DataError(f"{self._source}, row {row}: expected an object with named columns, got {shown(record)}")
        try:
            return self._make(record)  # type: ignore[return-value]  # __init__ chose the maker of this kind
        except DataError as error:
            raise DataError(f"{self._source}, row {row}: {error}") from None

    def _has_all(self, kind: type, came: Collection[str]) -> bool:
        return all(self._name(column) in came for column in REQUIRED[kind])

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
        given = self._string(record, "input", may_be_empty=True)
        if not instruction.strip() and not given.strip():
            names = f"{self._name('instruction')!r} and {self._name('input')!r}"
            raise DataError(f"columns {names} are both empty; one of them must hold text")
        return Instruction(instruction, given, self._string(record, "output"), self._language(record))

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
        """The list in `negatives`, then `negative`, `negative_1`, ... in the order of their numbers; null is none."""
        name = self._name("negatives")
        listed = record.get(name)
        if listed is None:
            listed = []
        if not isinstance(listed, (list, tuple)):
            raise DataError(f"column {name!r} must be a list of strings, got {shown(listed)}")
        found = [_checked_string(text, f"column {name!r}, item {at}") for at, text in enumerate(listed, start=1)]
        came = tuple(record)
        if came not in self._negatives:
            self._negatives[came] = _negative_columns(came, self._columns)
        for column in self._negatives[came]:
            if record.get(column) is not None:
                found.append(_checked_string(record[column], f"column {column!r}"))
        return tuple(found)


def check_columns(kind: type, columns: Mapping[str, str]) -> None:
    """Raises ValueError if `columns` names a column that no row of this kind has."""
    kinds = (Pair, Instruction) if kind is Pair else (kind,)
    known = {column for one in kinds for column in (*REQUIRED[one], *_OPTIONAL[one])}
    for column in columns:
        if column not in known and not (kind is Pair and _NEGATIVE.fullmatch(column)):
            raise ValueError(f"columns: {column!r} is no column of a {kind.__name__}; {_taken(kind, {})}")


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


def _negative_columns(came: Collection[str], columns: Mapping[str, str]) -> list[str]:
    """The file's names of negative, negative_1, negative_2, ... in the order of their numbers."""
    ours = {theirs: our for our, theirs in columns.items()}
    numbered = []
    for name in came:
        match = _NEGATIVE.fullmatch(ours.get(name, name))
        if match:
            numbered.append((int(match[1]) if match[1] else -1, name))
    return [name for _, name in sorted(numbered)]


def _taken(kind: type, columns: Mapping[str, str]) -> str:
    kinds = (Pair, Instruction) if kind is Pair else (kind,)
    names = " or ".join("(" + ", ".join(columns.get(c, c) for c in REQUIRED[one]) + ")" for one in kinds)
    optional = ", ".join(columns.get(c, c) for c in _OPTIONAL[kind])
    return f"taken: {names}" + (f", optional: {optional}" if optional else "")


def _listed(names: Collection[str]) -> str:
    return "(" + ", ".join(str(name) for name in names) + ")"


def shown(value: object) -> str:
    """A value for an error message: its type, and the value itself if it is short."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
