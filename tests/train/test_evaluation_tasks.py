"""Tasks from rows, scored by mteb: values computed by hand, languages, errors."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from train.data.languages import TABLE_7_SHARES
from train.data.rows import Pair, Scored
from train.evaluation.evaluate import evaluate
from train.evaluation.language_tags import is_latin_script, language_tag
from train.evaluation.local_tasks import crosslingual_task, local_tasks, retrieval_task, sts_task
from train.evaluation.random_state import preserved_random_state

NON_LATIN_SCRIPT = {"zh", "ja", "ru", "ar", "ko", "bn", "th", "hi", "km", "he"}
ROUNDING = 0.6e-5  # mteb rounds retrieval metrics to five decimals


class TableEncoder:
    """Looks up each text's vector, and records the texts."""

    def __init__(self, vectors: Mapping[str, Sequence[float]]) -> None:
        self.vectors = vectors
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return np.array([self.vectors[text] for text in texts], dtype=np.float32)


class PerfectEncoder:
    """Knows which texts belong together: "query 3 in de" and "text 3" get the same vector."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.eye(64, dtype=np.float32)[[int(text.split()[1]) for text in texts]]


class RandomEncoder:
    def __init__(self) -> None:
        self.generator = np.random.default_rng(7)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.generator.standard_normal((len(texts), 32)).astype(np.float32)


def pairs(language: str = "en", count: int = 40) -> list[Pair]:
    return [Pair(f"query {i} in {language}", f"text {i}", language=language) for i in range(count)]


def graded() -> list[Scored]:
    """Scores 1, 0 for equal and different numbers, as `PerfectEncoder` sees them."""
    return [Scored(f"a {i}", f"b {i if i % 2 else i + 1}", float(i % 2)) for i in range(40)]


def test_perfect_encoder_scores_one():
    tasks = local_tasks(retrieval=pairs(), crosslingual=pairs("de") + pairs("zh"), sts=graded())
    scores = evaluate(PerfectEncoder(), tasks, progress=False)
    assert list(scores.tasks) == ["HeadingToSection", "CrossLingualMessages", "DocumentTreeSTS"]
    assert scores["HeadingToSection"].metrics == {"ndcg_at_10": 1.0, "recall_at_20": 1.0, "recall_at_100": 1.0}
    assert scores["CrossLingualMessages"].main_score == 1.0
    assert scores["DocumentTreeSTS"].metrics == {"spearman": pytest.approx(1.0)}


def test_random_encoder_is_near_chance():
    many = pairs(count=1000)
    scores = evaluate(RandomEncoder(), [retrieval_task(many)], progress=False)["HeadingToSection"].metrics
    # One relevant document in 1000, at a random rank: E[nDCG@10] = sum_{r=1}^{10} 1 / log2(r + 1) / 1000 = 0.0045.
    assert 0 < scores["ndcg_at_10"] < 0.015
    assert scores["recall_at_100"] == pytest.approx(0.1, abs=0.04)


def test_ndcg_and_recall_equal_the_hand_computation():
    # Documents on a half circle, ranked by their angle to the query at angle 0: a, b, c, d.
    angle = {"q": 0.0, "a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
    encoder = TableEncoder({text: (5 * math.cos(x), 5 * math.sin(x)) for text, x in angle.items()} | {"other": (0, 1)})
    rows = [Pair("q", "b"), Pair("other", "a"), Pair("q", "d"), Pair("other", "c")]
    scores = evaluate(encoder, [retrieval_task(rows)], progress=False)["HeadingToSection"].metrics
    best = 1 + 1 / math.log2(3)  # two relevant documents, at ranks 1 and 2
    q = (1 / math.log2(3) + 1 / math.log2(5)) / best  # relevant are b and d, at ranks 2 and 4
    other = (1 / math.log2(3) + 1 / math.log2(5)) / best  # ranked d, c, b, a; relevant are c and a
    assert scores["ndcg_at_10"] == pytest.approx((q + other) / 2, abs=ROUNDING)
    assert scores["recall_at_20"] == 1.0


def test_relevant_document_below_rank_ten_counts_for_recall_only():
    angles = {f"d{i}": 0.01 * (i + 1) for i in range(30)}
    encoder = TableEncoder({t: (math.cos(x), math.sin(x)) for t, x in angles.items()} | {"q": (1, 0), "far": (0, 1)})
    rows = [Pair("q", "d14"), *(Pair("far", text) for text in angles if text != "d14")]
    # "far" ranks d29 ... d0; its one irrelevant document, d14, is at rank 16.
    scores = evaluate(encoder, [retrieval_task(rows)], progress=False)["HeadingToSection"].metrics
    assert scores["ndcg_at_10"] == pytest.approx((0 + 1) / 2)
    assert scores["recall_at_20"] == pytest.approx((1 + 19 / 29) / 2, abs=ROUNDING)
    assert scores["recall_at_100"] == 1.0


def test_equal_queries_become_one_with_all_their_positives():
    task = retrieval_task([Pair("q", "x"), Pair("q", "y"), Pair("r", "x"), Pair("q", "x")])
    data = task.dataset["default"]["test"]
    assert list(data["queries"]["text"]) == ["q", "r"]
    assert list(data["corpus"]["text"]) == ["x", "y"]
    assert data["relevant_docs"] == {"q0": {"d0": 1, "d1": 1}, "q1": {"d0": 1}}


def test_crosslingual_languages_share_the_corpus_and_are_averaged_evenly():
    # German finds all its texts at rank 1, Hindi one at rank 1 and one at rank 2, French its only one at rank 2.
    eye = np.eye(8)
    vectors = {f"en {i}": eye[i] for i in range(4)} | {f"de {i}": eye[i] for i in range(4)}
    vectors |= {"hi 0": eye[0], "hi 1": eye[2] + 0.5 * eye[1], "fr 0": eye[3] + 0.5 * eye[0]}
    rows = [Pair(q, f"en {q[-1]}", language=q[:2]) for q in vectors if q[:2] != "en"] + [Pair("en 9", "en 3")]
    encoder = TableEncoder(vectors)
    task = crosslingual_task(rows)
    assert task.metadata.eval_langs == {"de": ["deu-Latn"], "fr": ["fra-Latn"], "hi": ["hin-Deva"]}
    scores = evaluate(encoder, [task], progress=False)["CrossLingualMessages"]
    second = 1 / math.log2(3)
    per_language = {language: metrics["ndcg_at_10"] for language, metrics in scores.by_language.items()}
    assert per_language == pytest.approx({"de": 1.0, "fr": second, "hi": (1 + second) / 2}, abs=ROUNDING)
    assert scores.main_score == pytest.approx((1 + second + (1 + second) / 2) / 3, abs=ROUNDING)
    assert scores.non_latin["ndcg_at_10"] == pytest.approx((1 + second) / 2, abs=ROUNDING)
    assert sorted(encoder.asked) == sorted(set(encoder.asked))  # each text once, the corpus too
    assert "en 9" not in encoder.asked  # an English query is no translation


def test_latin_languages_alone_have_no_non_latin_mean():
    scores = evaluate(PerfectEncoder(), [crosslingual_task(pairs("de"))], progress=False)["CrossLingualMessages"]
    assert scores.non_latin == {}
    assert scores.metrics["ndcg_at_10"] == 1.0


def test_spearman_of_the_cosine():
    angles = {"b1": 0.1, "b2": 0.7, "b3": 0.4, "b4": 1.2}
    encoder = TableEncoder({t: (math.cos(x), math.sin(x)) for t, x in angles.items()} | {"a": (3, 0)})
    rows = [Scored("a", "b1", 4), Scored("a", "b2", 3), Scored("a", "b3", 2), Scored("a", "b4", 1)]
    # Ranks by score 1 2 3 4, by cosine 1 3 2 4: rho = 1 - 6 (0 + 1 + 1 + 0) / (4 (16 - 1)) = 0.8.
    assert evaluate(encoder, [sts_task(rows)], progress=False)["DocumentTreeSTS"].main_score == pytest.approx(0.8)


def test_language_tags_are_mtebs_and_say_the_script():
    from mteb.languages import check_language_code

    assert set(TABLE_7_SHARES) > NON_LATIN_SCRIPT
    for language in TABLE_7_SHARES:
        check_language_code(language_tag(language))
        assert is_latin_script(language) == (language not in NON_LATIN_SCRIPT)
    assert language_tag("ces-Latn") == "ces-Latn"
    with pytest.raises(ValueError, match="language: got 'xx'"):
        language_tag("xx")


@pytest.mark.parametrize("call", [retrieval_task, crosslingual_task, sts_task, lambda rows: local_tasks(sts=rows)])
def test_no_rows_is_an_error(call):
    with pytest.raises(ValueError, match="got no rows"):
        call([])


def test_rows_that_make_no_task_are_an_error():
    with pytest.raises(ValueError, match="all are in English"):
        crosslingual_task(pairs("en"))
    with pytest.raises(ValueError, match="all 2 scores are 1"):
        sts_task([Scored("a", "b", 1), Scored("c", "d", 1)])


def test_evaluation_leaves_the_random_generators_alone():
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = random.random(), np.random.random(), torch.rand(()).item()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    evaluate(RandomEncoder(), local_tasks(retrieval=pairs(), sts=graded()), progress=False)
    assert (random.random(), np.random.random(), torch.rand(()).item()) == expected


def test_random_state_is_restored_after_an_error():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with pytest.raises(KeyError), preserved_random_state():
        torch.manual_seed(4)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state)
