"""The mteb adapter, the BM25 baseline, and mteb's own tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from train.data.rows import Pair, Scored
from train.evaluation.bm25 import BM25Search, tokenize
from train.evaluation.evaluate import evaluate, evaluate_bm25
from train.evaluation.local_tasks import local_tasks
from train.evaluation.mteb_adapter import MtebAdapter
from train.evaluation.mteb_tasks import EvaluationError, evaluate_mteb_tasks

ROWS = [Pair(f"query {i}", f"document {i}") for i in range(12)]


class BrokenEncoder:
    """Zeros of a wrong shape, or with one bad value."""

    def __init__(self, shape: tuple[int, ...] | None = None, bad: float | None = None) -> None:
        self.shape, self.bad = shape, bad

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.ones(self.shape or (len(texts), 4), dtype=np.float32)
        if self.bad is not None:
            vectors[-1, 2] = self.bad
        return vectors


class HashEncoder:
    """A text's vector depends on the text alone."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        seeds = [list(text.encode()) for text in texts]
        return np.array([np.random.default_rng(seed).standard_normal(8) for seed in seeds], dtype=np.float32)


@pytest.mark.parametrize("shape", [(12,), (11, 4), (12, 0), (12, 4, 1)])
def test_wrong_shape_names_the_encoder(shape):
    with pytest.raises(ValueError, match=r"BrokenEncoder\.encode: got shape \(.*for 12 texts"):
        evaluate(BrokenEncoder(shape=shape), local_tasks(retrieval=ROWS), progress=False)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_name_the_encoder_and_the_text(bad):
    with pytest.raises(ValueError, match=r"BrokenEncoder\.encode: 1 of 12 vectors .* 'document 11'"):
        evaluate(BrokenEncoder(bad=bad), local_tasks(retrieval=ROWS), progress=False)


def test_collapsed_encoder_has_undefined_spearman_and_chance_retrieval():
    sts = [Scored(f"a{i}", f"b{i}", float(i)) for i in range(4)]
    with pytest.warns(RuntimeWarning, match="constant"):
        scores = evaluate(BrokenEncoder(), local_tasks(retrieval=ROWS, sts=sts), progress=False)
    assert np.isnan(scores["DocumentTreeSTS"].main_score)
    assert scores["HeadingToSection"].metrics["ndcg_at_10"] < 0.6


def test_same_scores_under_mtebs_own_entry_point():
    """The tasks are ordinary mteb tasks, and our search ranks as mteb's does."""
    import mteb

    tasks = local_tasks(retrieval=ROWS, crosslingual=[Pair(f"Text {i}", f"text {i}", language="de") for i in range(30)])
    ours = evaluate(HashEncoder(), tasks, progress=False)
    theirs = mteb.evaluate(MtebAdapter(HashEncoder()), tasks, cache=None, co2_tracker=False, show_progress_bar=False)
    for result in theirs.task_results:
        expected = ours[result.task_name].main_score
        assert 0 < expected < 1
        assert result.get_score() == pytest.approx(expected, abs=1e-5)


def test_search_in_parts_gives_the_same(monkeypatch):
    tasks = local_tasks(retrieval=[Pair(f"Text {i}", f"text {i}") for i in range(30)])
    whole = evaluate(HashEncoder(), tasks, progress=False)
    monkeypatch.setattr("train.evaluation.local_search.MAX_SCORES", 7 * 30)  # 30 queries: four times 7, and 2
    assert evaluate(HashEncoder(), tasks, progress=False) == whole


def test_bm25_indexes_a_corpus_once_for_all_languages(monkeypatch):
    indexed: list[int] = []
    set_corpus = BM25Search.set_corpus
    monkeypatch.setattr(BM25Search, "set_corpus", lambda self, x: (indexed.append(len(x)), set_corpus(self, x)))
    rows = [Pair(f"Text {i}", f"text {i}", language=language) for language in ("de", "fr", "zh") for i in range(9)]
    evaluate_bm25(local_tasks(crosslingual=rows), progress=False)
    assert indexed == [9]


def test_bm25_finds_exact_words():
    words = ["gravel", "meadow", "lantern", "copper", "whisper", "timber", "velvet", "harbor"]
    rows = [Pair(f"About the {word}", f"A page on one {word} and nothing else") for word in words]
    rows += [Pair(f"{word} in Wort", f"The message about a {word}", language="de") for word in words]
    tasks = local_tasks(retrieval=rows[:8], crosslingual=rows[8:], sts=[Scored("a", "b", 0), Scored("c", "d", 1)])
    scores = evaluate_bm25(tasks, progress=False)
    assert list(scores.tasks) == ["HeadingToSection", "CrossLingualMessages"]  # none for STS
    assert scores["HeadingToSection"].main_score == 1.0
    assert scores["CrossLingualMessages"].by_language["de"]["ndcg_at_10"] == 1.0


def test_bm25_prefers_the_rare_word():
    search = BM25Search()
    search.set_corpus(["common words", "other things", "rareword things", "common rareword", "common things"])
    positions, scores = search.rank(["common rareword"], 5)
    assert positions[0, :2].tolist() == [3, 2]  # both words, then the one that only two documents have
    assert (np.diff(scores[0]) <= 0).all()


def test_bm25_takes_queries_and_documents_without_terms():
    rows = [Pair("???", "!!!"), Pair("the", "of the"), Pair("river", "a river")]
    scores = evaluate_bm25(local_tasks(retrieval=rows), progress=False)
    assert scores["HeadingToSection"].metrics["recall_at_20"] == 1.0  # the corpus has three documents
    only_empty = evaluate_bm25(local_tasks(retrieval=rows[:1]), progress=False)
    assert only_empty["HeadingToSection"].main_score == 1.0


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The Running of QUERIES", ["run", "queri"]),
        ("%(name)s isn\u2019t valid.", ["name", "s", "isn", "t", "valid"]),
        ("请输入URL地址", ["请输", "输入", "url", "地址"]),
        ("ファイル名", ["ファ", "ァイ", "イル", "ル名"]),
        ("कृपया", ["कृपया"]),  # one word, though it holds vowel signs
        ("값을 입력", ["값을", "입력"]),
        ("Ｆｕｌｌ width", ["full", "width"]),
        ("字", ["字"]),
        ("", []),
    ],
)
def test_bm25_terms(text, terms):
    assert tokenize(text) == terms


def test_unknown_name_is_an_error_before_any_download():
    with pytest.raises(ValueError, match=r"no task or benchmark 'STSBenchmrk'; did you mean .*STSBenchmark"):
        evaluate_mteb_tasks(HashEncoder(), ["STSBenchmrk"], progress=False)
    with pytest.raises(TypeError, match="got the string"):
        evaluate_mteb_tasks(HashEncoder(), "STSBenchmark", progress=False)


def test_failed_download_names_the_task_and_the_reason(monkeypatch):
    from mteb.abstasks.abstask import AbsTask

    def fail(self: AbsTask, **_: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(AbsTask, "load_data", fail)
    with pytest.raises(EvaluationError, match=r"STSBenchmark: data .* did not load: ConnectionError: no route to"):
        evaluate_mteb_tasks(HashEncoder(), ["STSBenchmark"], progress=False)


def test_named_tasks_and_benchmarks_are_scored(monkeypatch):
    """A benchmark is evaluated on all its tasks; a task with subsets gets a score for each. The data are made up."""
    import mteb
    from datasets import Dataset
    from mteb.abstasks.abstask import AbsTask

    loaded: list[str] = []

    def load(self: AbsTask, **_: object) -> None:
        loaded.append(self.metadata.name)
        texts = [f"text {i}" for i in range(6)]
        rows = Dataset.from_dict({"sentence1": texts, "sentence2": texts[1:] + texts[:1], "score": [0, 1, 2, 3, 4, 5]})
        subsets = {subset: dict.fromkeys(self.eval_splits, rows) for subset in self.hf_subsets}
        self.dataset = subsets if self.metadata.is_multilingual else dict.fromkeys(self.eval_splits, rows)
        self.data_loaded = True

    monkeypatch.setattr(AbsTask, "load_data", load)
    benchmark = mteb.get_benchmark("MTEB(eng, v2)")
    sts = [task for task in benchmark.tasks if task.metadata.name in ("STSBenchmark", "STS17")]
    monkeypatch.setattr(benchmark, "tasks", sts)
    scores = evaluate_mteb_tasks(HashEncoder(), ["MTEB(eng, v2)", "STS22.v2"], progress=False)
    assert sorted(loaded) == ["STS17", "STS22.v2", "STSBenchmark"]
    assert list(scores.tasks) == loaded
    assert scores["STSBenchmark"].main == "cosine_spearman"
    assert -1 <= scores["STSBenchmark"].main_score <= 1
    subsets = scores["STS22.v2"].by_language
    assert {"en", "zh"} < set(subsets)
    assert scores["STS22.v2"].main_score == pytest.approx(np.mean([s["cosine_spearman"] for s in subsets.values()]))
