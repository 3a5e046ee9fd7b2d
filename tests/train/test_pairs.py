"""Pairs as indices, pools mined from them, and the teacher that filters them."""

import numpy as np
import pytest

from train.data.rows import Pair
from train.pairs import PairTable
from train.recipe import MineRecipe
from train.sampling import language_sampler
from train.stages.mine import mine
from train.teacher import teacher_scores


def test_right_answers_of_one_query_and_queries_of_one_answer_are_one_group() -> None:
    table = PairTable.of(
        [Pair("Bugfixes", "a"), Pair("Bugfixes ", "b"), Pair("Fehler", "b", language="de"), Pair("other", "c")]
    )
    assert len(table.texts) == 6  # "Bugfixes" and "Bugfixes " are one text
    groups = {text: int(group) for text, group in zip(table.texts, table.groups, strict=True)}
    assert groups["Bugfixes"] == groups["a"] == groups["b"] == groups["Fehler"]
    assert groups["other"] == groups["c"] != groups["a"]


def one_hot(texts: list[str]) -> np.ndarray:
    """A text's direction follows from its digits: 'x12' is between 1 and 2."""
    vectors = np.full((len(texts), 10), 0.01, dtype=np.float32)
    for row, text in enumerate(texts):
        for digit in text[1:]:
            vectors[row, int(digit)] += 1
    return vectors


ROWS = [Pair(f"q{i}{(i + 1) % 9}", f"p{i}", ("n9",) if i == 0 else ()) for i in range(9)] + [Pair("q01", "p00")]


def test_pools_hold_the_nearest_wrong_answers_and_no_right_ones() -> None:
    table = PairTable.of(ROWS)
    pools = mine(table, one_hot, MineRecipe(pool_size=4, search=10, max_score_ratio=2.0), at_least=3, seed=0)
    assert pools.shape == (10, 4)
    for row, pool in enumerate(pools):
        group = table.groups[table.queries[row]]
        assert (table.groups[pool[pool >= 0]] != group).all()
        assert len(set(pool[pool >= 0])) == (pool >= 0).sum() >= 3
    assert table.texts[pools[3][0]] == "p4"  # q34 is between p3, its positive, and p4
    assert [table.texts[i] for i in pools[0][:2]] == ["n9", "p1"]  # a negative from the data comes first


def test_candidates_nearer_than_the_answer_are_dropped() -> None:
    table = PairTable.of(ROWS)
    pools = mine(table, one_hot, MineRecipe(pool_size=4, search=10, max_score_ratio=0.5), at_least=2, seed=0)
    assert "p4" not in [table.texts[i] for i in pools[3][:1]]


def test_too_few_texts_for_a_pool_is_an_error() -> None:
    table = PairTable.of(ROWS[1:4])
    with pytest.raises(ValueError, match="only 2 possible negatives, 3 needed"):
        mine(table, one_hot, MineRecipe(), at_least=3, seed=0)


def test_languages_by_table_7() -> None:
    rows = [Pair(f"q{i}", f"p{i}", language="km") for i in range(500)] + [
        Pair(f"r{i}", f"s{i}", language="zh") for i in range(100)
    ] + [Pair("eo", "eo2", language="eo")]  # fmt: skip
    table = PairTable.of(rows)
    drawn = language_sampler(table.languages, "table7", (0,)).take(2000)
    shares = {name: np.mean([table.languages[i] == name for i in drawn]) for name in ("km", "zh", "eo")}
    assert shares["zh"] == pytest.approx(12 / 13, abs=0.02)
    assert shares["km"] == pytest.approx(1 / 13, abs=0.02)
    assert shares["eo"] == 0


def test_teacher_scores() -> None:
    rows = [
        Pair("fast red car", "the red car is fast"),
        Pair("fast red car", "cooking rice"),
        Pair("fast red car", "cooking rice", teacher_score=0.9),
    ]
    scores = teacher_scores(rows, "tfidf")
    assert scores[0] > 0.4 > scores[1] == 0
    assert scores[2] == np.float32(0.9)
    assert teacher_scores(rows, "").tolist() == pytest.approx([1, 1, 0.9])
    kept = PairTable.of(rows).only(scores >= 0.4)
    assert [kept.texts[i] for i in kept.positives] == ["the red car is fast", "cooking rice"]
