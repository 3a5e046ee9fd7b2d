"""mteb tasks from rows in memory, without hub or network.

Each function returns an ordinary mteb task with its data loaded, so it also runs under `mteb.evaluate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from train.evaluation.language_tags import language_tag
from train.evaluation.random_state import preserved_random_state

if TYPE_CHECKING:
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.abstask import AbsTask
    from mteb.abstasks.sts import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata

    from train.data.rows import Pair, Scored

HEADING_TO_SECTION = "HeadingToSection"
CROSSLINGUAL_MESSAGES = "CrossLingualMessages"
DOCUMENT_TREE_STS = "DocumentTreeSTS"
SPLIT = "test"
# The reported ranks, and 1, which mteb requires. mteb's default goes up to 1000: ten times the time for sorting and
# scoring, and the paper reports no such rank (MKQA: recall at 20 and 100, nDCG at 10).
RANKS = (1, 10, 20, 100)


def retrieval_task(pairs: Sequence[Pair], *, name: str = HEADING_TO_SECTION, language: str = "en") -> AbsTaskRetrieval:
    """Retrieval of `Pair.positive` by `Pair.query`; main score nDCG@10.

    The corpus is the distinct positives. There is one query per distinct query text, and all its positives are
    relevant. Hard negatives, teacher scores and `Pair.language` are ignored.

    Raises:
        ValueError: no pairs, or an unknown language code.
    """
    _require_rows("pairs", pairs)
    corpus_ids = _corpus_ids(pairs)
    metadata = _metadata(name, "Retrieval", [language_tag(language)], "ndcg_at_10")
    return _retrieval(metadata, {"default": pairs}, corpus_ids)


def crosslingual_task(pairs: Sequence[Pair], *, name: str = CROSSLINGUAL_MESSAGES) -> AbsTaskRetrieval:
    """Retrieval of an English text by its translation, one mteb subset per language; main score nDCG@10.

    All languages search the same corpus: the distinct positives of all pairs. Pairs in English only add to the corpus,
    as their query is not a translation.

    Raises:
        ValueError: no pairs in another language than English, or an unknown language code.
    """
    _require_rows("pairs", pairs)
    by_language: dict[str, list[Pair]] = {}
    for pair in pairs:
        if pair.language != "en":
            by_language.setdefault(pair.language, []).append(pair)
    if not by_language:
        raise ValueError("pairs: all are in English; a cross-lingual task needs pairs in at least one other language")
    by_language = dict(sorted(by_language.items()))
    tags = {language: [language_tag(language)] for language in by_language}
    return _retrieval(_metadata(name, "Retrieval", tags, "ndcg_at_10"), by_language, _corpus_ids(pairs))


def sts_task(rows: Sequence[Scored], *, name: str = DOCUMENT_TREE_STS, language: str = "en") -> AbsTaskSTS:
    """Semantic textual similarity; main score: Spearman correlation of the cosine with `Scored.score`.

    Raises:
        ValueError: fewer than two different scores (the correlation is undefined), or an unknown language code.
    """
    _require_rows("rows", rows)
    scores = [row.score for row in rows]
    if len(set(scores)) < 2:
        raise ValueError(
            f"rows: all {len(rows)} scores are {scores[0]}; a correlation needs at least two different scores"
        )
    metadata = _metadata(name, "STS", [language_tag(language)], "cosine_spearman")
    with preserved_random_state():
        from datasets import Dataset

        columns = {"sentence1": [r.a for r in rows], "sentence2": [r.b for r in rows], "score": scores}
        task: AbsTaskSTS = _local_classes()["STS"](metadata, {"default": {SPLIT: Dataset.from_dict(columns)}})
        # mteb scales the scores to [0, 1] by these; a rank correlation does not change.
        task.min_score, task.max_score = min(scores), max(scores)  # type: ignore[assignment]
    return task


def local_tasks(
    *, retrieval: Sequence[Pair] = (), crosslingual: Sequence[Pair] = (), sts: Sequence[Scored] = ()
) -> list[AbsTask]:
    """The tasks whose rows are given, under their default names.

    Raises:
        ValueError: no rows at all, or an error of the functions above.
    """
    tasks: list[AbsTask] = []
    if retrieval:
        tasks.append(retrieval_task(retrieval))
    if crosslingual:
        tasks.append(crosslingual_task(crosslingual))
    if sts:
        tasks.append(sts_task(sts))
    _require_rows("retrieval, crosslingual, sts", tasks)
    return tasks


def _require_rows(argument: str, rows: Sequence[Any]) -> None:
    if not rows:
        raise ValueError(f"{argument}: got no rows; an evaluation needs at least one")


def _corpus_ids(pairs: Iterable[Pair]) -> dict[str, str]:
    """Document id of each distinct positive, in order of first appearance."""
    texts = dict.fromkeys(pair.positive for pair in pairs)
    return {text: f"d{index}" for index, text in enumerate(texts)}


def _retrieval(
    metadata: TaskMetadata, pairs_by_subset: Mapping[str, Sequence[Pair]], corpus_ids: dict[str, str]
) -> AbsTaskRetrieval:
    with preserved_random_state():
        from datasets import Dataset

        # One object for all subsets, so that `LocalSearch.index` recognizes an indexed corpus.
        corpus = Dataset.from_dict({"id": list(corpus_ids.values()), "text": list(corpus_ids)})
        dataset = {}
        for subset, pairs in pairs_by_subset.items():
            query_ids = {text: f"q{index}" for index, text in enumerate(dict.fromkeys(pair.query for pair in pairs))}
            relevant: dict[str, dict[str, int]] = {query_id: {} for query_id in query_ids.values()}
            for pair in pairs:
                relevant[query_ids[pair.query]][corpus_ids[pair.positive]] = 1
            queries = Dataset.from_dict({"id": list(query_ids.values()), "text": list(query_ids)})
            split = {"corpus": corpus, "queries": queries, "relevant_docs": relevant, "top_ranked": None}
            dataset[subset] = {SPLIT: split}
        task: AbsTaskRetrieval = _local_classes()["Retrieval"](metadata, dataset)
    return task


def _metadata(
    name: str, kind: Literal["Retrieval", "STS"], languages: list[str] | dict[str, list[str]], main_score: str
) -> TaskMetadata:
    with preserved_random_state():
        from mteb.abstasks.task_metadata import TaskMetadata

    return TaskMetadata(
        name=name,
        description="Rows in memory.",
        dataset={"path": "local", "revision": "local"},
        type=kind,
        category="t2t",
        eval_splits=[SPLIT],
        eval_langs=languages,
        main_score=main_score,
    )


@cache
def _local_classes() -> dict[str, type]:
    """mteb's task classes with given data. Defined on first use, as importing mteb takes seconds."""
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.sts import AbsTaskSTS

    class LocalRetrieval(AbsTaskRetrieval):
        k_values = RANKS

        def __init__(self, metadata: TaskMetadata, dataset: Any) -> None:
            self.metadata = metadata
            super().__init__()
            self.dataset, self.data_loaded = dataset, True

    class LocalSTS(AbsTaskSTS):
        def __init__(self, metadata: TaskMetadata, dataset: Any) -> None:
            self.metadata = metadata
            super().__init__()
            self.dataset, self.data_loaded = dataset, True

    return {"Retrieval": LocalRetrieval, "STS": LocalSTS}
