"""The corpus as built from the real archive: sizes, the split, and that no test text occurs in training."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from train.data.django_corpus import cache
from train.data.django_corpus.download import fetch_archive
from train.data.django_corpus.split import NO_WORD_SPACES
from train.data.languages import TABLE_7_SHARES, sampling_shares
from train.data.load import load_rows
from train.data.rows import DataError, Instruction, Pair, Scored, Text

KINDS = {"text": Text, "instructions": Instruction, "retrieval": Pair, "crosslingual": Pair, "sts": Scored}


@pytest.fixture(scope="session")
def corpus() -> dict[tuple[str, str], list]:
    return {
        (part, split): load_rows(f"django:{part}", KINDS[part], split=split)
        for part, splits in cache.SPLITS.items()
        for split in splits
    }


def texts_of(row) -> tuple[str, ...]:
    if isinstance(row, Text):
        return (row.text,)
    if isinstance(row, Pair):
        return (row.query, row.positive)
    if isinstance(row, Scored):
        return (row.a, row.b)
    return (row.instruction, row.input, row.output)


def normal(text: str) -> str:
    return " ".join(text.casefold().split())


@pytest.fixture(scope="session")
def train_texts(corpus) -> set[str]:
    return {normal(t) for (_, split), rows in corpus.items() if split == "train" for row in rows for t in texts_of(row)}


@pytest.fixture(scope="session")
def plain_text(corpus) -> str:
    return " \n ".join(normal(row.text) for row in corpus["text", "train"])


@pytest.fixture(scope="session")
def plain_trigrams(plain_text) -> set[str]:
    """Only a text whose first three words are here can be in the plain text: most slow searches are skipped."""
    words = plain_text.split()
    return set(map(" ".join, zip(words, words[1:], words[2:], strict=False)))


def quoted_in(plain_text: str, plain_trigrams: set[str], texts) -> list[str]:
    """The texts of three words or more that are in the training plain text, word for word."""
    return [
        text
        for text in map(normal, texts)
        if len(text.split()) >= 3 and " ".join(text.split()[:3]) in plain_trigrams and f" {text} " in plain_text
    ]


def test_no_test_text_equals_a_training_text(corpus, train_texts) -> None:
    for (part, split), rows in corpus.items():
        if split == "test":
            seen = [text for row in rows for text in texts_of(row) if normal(text) in train_texts]
            assert not seen, f"{part}: {len(seen)} test texts are training texts, such as {seen[:3]}"


def test_no_test_text_is_inside_the_training_plain_text(corpus, plain_text, plain_trigrams) -> None:
    sections = {row.positive for row in corpus["retrieval", "test"]}
    english = {row.positive for row in corpus["crosslingual", "test"]}
    translations = {row.query for row in corpus["crosslingual", "test"]}
    passages = {text for row in corpus["sts", "test"] for text in (row.a, row.b)}
    for texts in (sections, english, translations, passages):
        assert not quoted_in(plain_text, plain_trigrams, texts)
    unspaced = plain_text.replace(" ", "")
    for row in corpus["crosslingual", "test"]:
        if row.language in NO_WORD_SPACES and len(row.query) >= 10:
            assert normal(row.query).replace(" ", "") not in unspaced


def runs_of_words(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[start : start + 8]) for start in range(len(words) - 7)}


def test_no_test_section_is_an_edited_copy_of_a_training_section(corpus) -> None:
    training = set().union(*(runs_of_words(row.positive) for row in corpus["retrieval", "train"]))
    for row in corpus["retrieval", "test"]:
        runs = runs_of_words(row.positive)
        assert len(runs & training) <= 0.5 * len(runs), row


def test_the_leak_check_finds_planted_leaks(corpus, train_texts, plain_text, plain_trigrams) -> None:
    training_section = corpus["retrieval", "train"][100].positive
    training_passage = corpus["sts", "train"][7].a
    assert quoted_in(plain_text, plain_trigrams, [training_section, training_passage]) == [
        normal(training_section),
        normal(training_passage),
    ]
    assert normal(corpus["crosslingual", "train"][11].query.upper()) in train_texts


def test_sizes(corpus) -> None:
    sizes = {key: len(rows) for key, rows in corpus.items()}
    assert sizes["retrieval", "train"] > 4000
    assert sizes["retrieval", "test"] > 500
    assert sizes["crosslingual", "train"] > 45_000
    assert sizes["crosslingual", "test"] > 2000
    assert sizes["sts", "train"] == 4000
    assert sizes["sts", "test"] == 1000
    words = sum(len(row.text.split()) for row in corpus["text", "train"])
    assert words > 900_000
    assert sizes["instructions", "train"] == 2 * (sizes["retrieval", "train"] + _distinct_messages(corpus))


def _distinct_messages(corpus) -> int:
    """Translation instructions into English, one for each training message of each locale."""
    return sum(row.instruction.endswith(("English.", "English?")) for row in corpus["instructions", "train"])


def test_languages(corpus) -> None:
    train = Counter(row.language for row in corpus["crosslingual", "train"])
    test = Counter(row.language for row in corpus["crosslingual", "test"])
    assert set(test) == set(TABLE_7_SHARES) - {"en"}
    assert set(test) < set(train)
    assert len(train) > 65
    assert not {"zh_Hans", "zh_Hant", "pt_BR", "nb", "nn", "en"} & set(train)
    assert any(row.query == "Passwort" and row.positive == "Password" for row in corpus["crosslingual", "train"])


def test_rows_are_clean_and_different(corpus) -> None:
    for key, rows in corpus.items():
        assert len(set(rows)) >= 0.98 * len(rows), key
    for row in corpus["crosslingual", "train"]:
        assert normal(row.query) != normal(row.positive)
    markup = [
        row.positive for row in corpus["retrieval", "train"] if ":class:`" in row.positive or ".. _" in row.positive
    ]
    # The rest is in examples of markup, in the pages on writing documentation.
    assert len(markup) < 20


def test_headings_of_the_test_part_have_one_answer(corpus) -> None:
    headings = Counter(normal(row.query) for row in corpus["retrieval", "test"])
    assert set(headings.values()) == {1}
    training = Counter(normal(row.query) for row in corpus["retrieval", "train"])
    assert training["bugfixes"] > 50


def test_sts_grades(corpus) -> None:
    for split, count in (("train", 1000), ("test", 250)):
        assert Counter(row.score for row in corpus["sts", split]) == dict.fromkeys((1.0, 0.67, 0.33, 0.0), count)
        assert all(12 <= len(text.split()) <= 60 for row in corpus["sts", split] for text in (row.a, row.b))
        assert all(normal(row.a) != normal(row.b) for row in corpus["sts", split])


def test_instructions_can_be_asked_for_as_pairs(corpus) -> None:
    pairs = load_rows("django:instructions", Pair)
    row, pair = corpus["instructions", "train"][-1], pairs[-1]
    assert len(pairs) == len(corpus["instructions", "train"])
    assert pair == Pair(f"{row.instruction}\n{row.input}", row.output, language=row.language)


def test_unknown_part_and_split() -> None:
    with pytest.raises(DataError, match=r"django:news: unknown part; expected one of text, instructions, retrieval"):
        load_rows("django:news", Text)
    with pytest.raises(DataError, match=r"django:text: unknown split 'test'; expected one of train"):
        load_rows("django:text", Text, split="test")
    with pytest.raises(DataError, match=r"columns \(text\) do not make a Scored; expected \(a, b, score\)"):
        load_rows("django:text", Scored)


@pytest.mark.proof  # builds the whole corpus twice
def test_interrupted_build_leaves_nothing_and_the_next_one_equals_any_other(corpus, tmp_path, monkeypatch) -> None:
    """The second build runs with other string hashes, as nothing may depend on Python's hash()."""
    archive, reference = fetch_archive(), cache.corpus_folder()
    folder = tmp_path / "django"
    folder.mkdir()
    (folder / archive.name).symlink_to(archive)
    left_by_a_killed_process = folder / f".{reference.name}.partial"
    left_by_a_killed_process.mkdir()
    (left_by_a_killed_process / "half.jsonl").touch()
    monkeypatch.setenv("CONAN_FAST_CACHE", str(tmp_path))

    def write_then_fail(partial: Path) -> None:
        (partial / "text.train.jsonl").write_text('{"text": "ha')
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cache, "write_corpus", write_then_fail)
        with pytest.raises(KeyboardInterrupt):
            cache.corpus_folder()
    assert {path.name for path in folder.iterdir()} - {".build.lock", ".download.lock"} == {archive.name}

    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    command = [sys.executable, "-m", "train.data.django_corpus"]
    table = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    assert f"retrieval     test   {len(corpus['retrieval', 'test']):8,}" in table
    built = folder / reference.name
    assert sorted(path.name for path in built.iterdir()) == sorted(path.name for path in reference.iterdir())
    for path in reference.iterdir():
        assert (built / path.name).read_bytes() == path.read_bytes(), path.name
    assert json.loads((built / "sts.test.jsonl").read_text(encoding="utf-8").splitlines()[0])["score"] == 1.0


def test_shares_of_table_7() -> None:
    assert len(TABLE_7_SHARES) == 26
    assert sum(TABLE_7_SHARES.values()) == 106  # as printed in the paper: not quite 100
    assert sum(sampling_shares(TABLE_7_SHARES).values()) == pytest.approx(1)
    assert sampling_shares(["de", "uk", "zh", "no"]) == pytest.approx({"zh": 12 / 18, "de": 5 / 18, "no": 1 / 18})
    assert list(sampling_shares({"no", "en"})) == ["en", "no"]
    with pytest.raises(ValueError, match=r"available: none of \['tlh', 'uk'\] is in table 7"):
        sampling_shares(["uk", "tlh"])
