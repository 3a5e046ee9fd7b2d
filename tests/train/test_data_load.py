"""Loading data: every format round-trips, and the error for a malformed row names file, row and problem."""

from __future__ import annotations

import re

import datasets
import pytest

from tests.train.small_data import write_jsonl
from train.data.load import load_rows
from train.data.rows import DataError, Instruction, Pair, Scored, Text

PAIRS = [
    {"query": "Wie spät ist es?", "positive": "Es ist drei.", "negatives": ["Nein.", "Ja."], "language": "de", "id": 7},
    {"query": "why", "positive": "because", "negatives": [], "language": "en", "id": 8},
]
PAIR_ROWS = [
    Pair("Wie spät ist es?", "Es ist drei.", ("Nein.", "Ja."), "de"),
    Pair("why", "because"),
]
BY_KIND = {
    Text: ([{"text": "one"}, {"text": "zwei\nबो"}], [Text("one"), Text("zwei\nबो")]),
    Pair: (PAIRS, PAIR_ROWS),
    Scored: ([{"a": "x", "b": "y", "score": 1}, {"a": "u", "b": "v", "score": 0.5}], None),
    Instruction: ([{"instruction": "Say", "input": "", "output": "hello"}], [Instruction("Say", "", "hello")]),
}
BY_KIND[Scored] = (BY_KIND[Scored][0], [Scored("x", "y", 1.0), Scored("u", "v", 0.5)])


def save(how: str, folder, records) -> str:
    if how in ("jsonl", "json"):
        return write_jsonl(folder / f"rows.{how}", records)
    table = datasets.Dataset.from_list(records)
    if how == "parquet":
        table.to_parquet(str(folder / "rows.parquet"))
        return str(folder / "rows.parquet")
    if how == "saved table":
        table.save_to_disk(str(folder / "saved"))
    else:
        other = datasets.Dataset.from_list(records[:1])
        datasets.DatasetDict({"other": other, "train": table}).save_to_disk(str(folder / "saved"))
    return str(folder / "saved")


@pytest.mark.parametrize("how", ["jsonl", "json", "parquet", "saved table", "saved splits"])
@pytest.mark.parametrize("kind", BY_KIND, ids=lambda kind: kind.__name__)
def test_round_trip(kind, how, tmp_path) -> None:
    records, rows = BY_KIND[kind]
    assert load_rows(save(how, tmp_path, records), kind) == rows


def test_split_of_a_saved_folder(tmp_path) -> None:
    source = save("saved splits", tmp_path, PAIRS)
    assert load_rows(source, Pair, split="other") == PAIR_ROWS[:1]
    with pytest.raises(DataError, match="unknown split 'test'; expected one of other, train"):
        load_rows(source, Pair, split="test")


def test_numbered_negatives_in_the_order_of_their_numbers(tmp_path) -> None:
    record = {"negative_10": "ten", "negative_2": "two", "query": "q", "negative": "plain", "positive": "p"}
    full = {**record, "negatives": ["a", "b"], "negative_3": None, "teacher_score": 0.5}
    for how in ("jsonl", "parquet"):
        (row,) = load_rows(save(how, tmp_path, [full]), Pair)
        assert row == Pair("q", "p", ("a", "b", "plain", "two", "ten"), teacher_score=0.5)
    later = [{"query": "q", "positive": "p"}, record]
    assert load_rows(save("jsonl", tmp_path, later), Pair)[1].negatives == ("plain", "two", "ten")


def test_columns_under_other_names(tmp_path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": "q", "answer": "p", "wrong": "n", "score": 0.25}])
    columns = {"query": "question", "positive": "answer", "negative_1": "wrong", "teacher_score": "score"}
    assert load_rows(source, Pair, columns=columns) == [Pair("q", "p", ("n",), teacher_score=0.25)]
    with pytest.raises(
        ValueError, match=r"columns: 'passage' is not a column of Pair; expected \(query, positive\) or"
    ):
        load_rows(source, Pair, columns={"passage": "answer"})
    with pytest.raises(DataError, match=r"columns \(question, answer, wrong, score\) do not make a Pair"):
        load_rows(source, Pair, columns={"query": "question"})


def test_instructions_as_pairs(tmp_path) -> None:
    records = [
        {"instruction": "Translate.", "input": "ja", "output": "yes", "language": "de"},
        {"instruction": "Say hello.", "input": "", "output": "hello"},
        {"instruction": "", "input": "2 + 2", "output": "4"},
    ]
    source = write_jsonl(tmp_path / "i.jsonl", records)
    assert load_rows(source, Pair) == [
        Pair("Translate.\nja", "yes", language="de"),
        Pair("Say hello.", "hello"),
        Pair("2 + 2", "4"),
    ]
    renamed = write_jsonl(tmp_path / "r.jsonl", [{"instruction": "Say", "input": "", "response": "hello"}])
    assert load_rows(renamed, Pair, columns={"output": "response"}) == [Pair("Say", "hello")]


def test_blank_lines_and_byte_order_mark(tmp_path) -> None:
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}')
    assert load_rows(str(path), Text) == [Text("a"), Text("b")]


def too_many_digits() -> str:
    """Python's message, which differs between its versions."""
    with pytest.raises(ValueError) as raised:
        int("1" * 5000)
    return str(raised.value)


GOOD = {
    Text: '{"text": "t"}',
    Pair: '{"query": "q", "positive": "p"}',
    Scored: '{"a": "a", "b": "b", "score": 1}',
    Instruction: '{"instruction": "i", "input": "", "output": "o"}',
}


@pytest.mark.parametrize(
    ("kind", "line", "problem"),
    [
        (Text, '{"txt": "t"}', "column 'text' is missing; the row has (txt)"),
        (Text, '{"text": 3}', "column 'text' must be a string, got int 3"),
        (Text, '{"text": null}', "column 'text' must be a string, got NoneType None"),
        (Text, '{"text": " \\n"}', "column 'text' is empty"),
        (Text, '{"text": "a\\ud800"}', "column 'text' is not valid Unicode: lone surrogate at character 1"),
        (
            Text,
            '{"text": "t"',
            "invalid JSON on line 2, column 13: Expecting ',' delimiter (expected one object per line)",
        ),
        (Text, '["t"]', "expected an object with named columns, got list ['t']"),
        (Text, '{"n": ' + "1" * 5000 + "}", f"invalid JSON on line 2: {too_many_digits()}"),
        (Text, "[" * 200_000, "JSON nested too deeply"),
        (Pair, '{"query": "", "positive": "p"}', "column 'query' is empty"),
        (Pair, '{"query": "q", "positive": ["p"]}', "column 'positive' must be a string, got list ['p']"),
        (Pair, '{"query": "q", "positive": "p", "language": 5}', "column 'language' must be a string, got int 5"),
        (
            Pair,
            '{"query": "q", "positive": "p", "negatives": "n"}',
            "column 'negatives' must be a list of strings, got str 'n'",
        ),
        (
            Pair,
            '{"query": "q", "positive": "p", "negatives": ["n", 2]}',
            "column 'negatives', item 2 must be a string, got int 2",
        ),
        (Pair, '{"query": "q", "positive": "p", "negatives": ["n", ""]}', "column 'negatives', item 2 is empty"),
        (Pair, '{"query": "q", "positive": "p", "negative_1": ""}', "column 'negative_1' is empty"),
        (
            Pair,
            '{"query": "q", "positive": "p", "teacher_score": "high"}',
            "column 'teacher_score' must be a number, got str 'high'",
        ),
        (
            Pair,
            '{"query": "q", "positive": "p", "teacher_score": Infinity}',
            "column 'teacher_score' must be a finite number, got float inf",
        ),
        (Scored, '{"a": "a", "b": "b", "score": NaN}', "column 'score' must be a finite number, got float nan"),
        (Scored, '{"a": "a", "b": "b", "score": true}', "column 'score' must be a number, got bool True"),
        (Scored, '{"a": "a", "b": "b", "score": null}', "column 'score' must be a number, got NoneType None"),
        (Scored, '{"a": "a", "score": 1}', "column 'b' is missing; the row has (a, score)"),
        (
            Instruction,
            '{"instruction": "i", "output": "o"}',
            "column 'input' is missing; the row has (instruction, output)",
        ),
        (
            Instruction,
            '{"instruction": " ", "input": "", "output": "o"}',
            "columns 'instruction' and 'input' are both empty; at least one must contain text",
        ),
        (Instruction, '{"instruction": "i", "input": "", "output": ""}', "column 'output' is empty"),
    ],
)
def test_malformed_row(kind, line, problem, tmp_path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{GOOD[kind]}\n{line}\n{GOOD[kind]}\n", encoding="utf-8")
    with pytest.raises(DataError) as raised:
        load_rows(str(path), kind)
    assert str(raised.value) == f"{path}, row 2: {problem}"


def test_bytes_that_are_not_utf_8(tmp_path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xe9t\xe9"}\n')
    with pytest.raises(DataError, match=re.escape(f"{path}, row 2: not UTF-8: ") + ".* at byte 10"):
        load_rows(str(path), Text)


def test_malformed_row_in_a_table(tmp_path) -> None:
    records = [{"a": "a", "b": "b", "score": 0.5}] * 5000 + [{"a": "a", "b": "b", "score": float("nan")}]
    for how in ("parquet", "saved table"):
        source = save(how, tmp_path, records)
        with pytest.raises(DataError, match=re.escape(f"{source}, row 5001: column 'score' must be a finite number")):
            load_rows(source, Scored)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Text, "expected (text)"),
        (
            Pair,
            "expected (query, positive) or (instruction, input, output), optional: negatives, negative, "
            "negative_1, negative_2, ..., language, teacher_score",
        ),
        (Scored, "expected (a, b, score)"),
        (Instruction, "expected (instruction, input, output), optional: language"),
    ],
)
def test_columns_that_fit_nothing(kind, expected, tmp_path) -> None:
    source = write_jsonl(tmp_path / "other.jsonl", [{"title": "t", "body": "b"}])
    with pytest.raises(DataError) as raised:
        load_rows(source, kind)
    assert str(raised.value) == f"{source}: columns (title, body) do not make a {kind.__name__}; {expected}"


def test_first_line_that_is_no_object(tmp_path) -> None:
    path = tmp_path / "array.json"
    path.write_text('[{"text": "a"}]', encoding="utf-8")
    with pytest.raises(DataError, match="row 1: expected an object with named columns, got list"):
        load_rows(str(path), Text)


@pytest.mark.parametrize("name", ["empty.jsonl", "blank.jsonl", "empty.parquet"])
def test_empty_file(name, tmp_path) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        datasets.Dataset.from_dict({"text": []}).to_parquet(str(path))
    else:
        path.write_text("\n \n" if name.startswith("blank") else "")
    with pytest.raises(DataError, match=re.escape(f"{path}: contains no rows")):
        load_rows(str(path), Text)


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.parquet", "missing", "no/such.jsonl"])
def test_missing_file(name, tmp_path) -> None:
    source = str(tmp_path / name)
    with pytest.raises(DataError, match=re.escape(f"{source}: file or folder not found; expected django:PART")):
        load_rows(source, Text)


def test_files_of_other_kinds(tmp_path) -> None:
    (tmp_path / "rows.csv").write_text("text\na\n")
    with pytest.raises(DataError, match=r"rows\.csv: unsupported file type '\.csv'; expected "):
        load_rows(str(tmp_path / "rows.csv"), Text)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match=r"broken\.parquet: not a readable Parquet file: "):
        load_rows(str(tmp_path / "broken.parquet"), Text)
    with pytest.raises(DataError, match="not a folder saved by datasets' save_to_disk: "):
        load_rows(str(tmp_path), Text)
    with pytest.raises(TypeError, match="kind: got <class 'dict'>; expected one of Text, Pair, Scored, Instruction"):
        load_rows("django:text", dict)


def test_hub_name(monkeypatch) -> None:
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return datasets.Dataset.from_list(PAIRS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_rows("owner/some-name", Pair, split="test") == PAIR_ROWS
    assert load_rows("owner/some-name:part_1", Pair) == PAIR_ROWS
    assert asked == [
        (("owner/some-name", None), {"split": "test"}),
        (("owner/some-name", "part_1"), {"split": "train"}),
    ]


def test_hub_name_that_cannot_be_read(monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="nobody/no-such-name:x: neither a file nor a readable hub data set") as raised:
        load_rows("nobody/no-such-name:x", Text)
    assert "(split 'train')" in str(raised.value)
