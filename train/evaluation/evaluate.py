"""Evaluate an encoder, or BM25, on the tasks of `train.evaluation.local_tasks`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from train.evaluation.bm25 import BM25Search
from train.evaluation.encoder import TextEncoder
from train.evaluation.local_search import EncoderSearch, LocalSearch
from train.evaluation.local_tasks import SPLIT
from train.evaluation.mteb_adapter import MtebAdapter
from train.evaluation.random_state import preserved_random_state
from train.evaluation.scores import Scores, TaskScores

if TYPE_CHECKING:
    from mteb.abstasks.abstask import AbsTask

# Task type -> {mteb's metric name: ours}. The first is the main score.
_METRICS = {
    "Retrieval": {"ndcg_at_10": "ndcg_at_10", "recall_at_20": "recall_at_20", "recall_at_100": "recall_at_100"},
    "STS": {"cosine_spearman": "spearman"},
}


def evaluate(encoder: TextEncoder, tasks: Sequence[AbsTask], *, progress: bool = True) -> Scores:
    """Scores of an encoder. Every distinct text is encoded once.

    Nothing is written to disk, and the global random number generators are preserved.

    Args:
        encoder: its `encode` gets long lists of texts and does its own batching.
        tasks: see `local_tasks`.
        progress: show a progress bar, one step per task and language.

    Raises:
        ValueError: the encoder returned a wrong shape, NaN or inf; the message names it.
    """
    adapter = MtebAdapter(encoder)
    return _evaluate({"Retrieval": EncoderSearch(adapter), "STS": adapter}, tasks, progress)


def evaluate_bm25(tasks: Sequence[AbsTask], *, progress: bool = True) -> Scores:
    """Scores of BM25 on the retrieval tasks among `tasks`.

    STS is skipped: BM25 ranks documents for a query, its score is not a symmetric similarity of two texts.
    """
    return _evaluate({"Retrieval": BM25Search()}, tasks, progress)


def _evaluate(models: dict[str, LocalSearch | MtebAdapter], tasks: Sequence[AbsTask], progress: bool) -> Scores:
    """`models`: task type -> model; tasks of other types are skipped."""
    tasks = [task for task in tasks if task.metadata.type in models]
    steps = sum(len(task.hf_subsets) for task in tasks)
    results: dict[str, TaskScores] = {}
    with preserved_random_state(), tqdm(total=steps, desc="evaluate", unit="subset", disable=not progress) as bar:
        for task in tasks:
            by_subset = {}
            for subset in task.hf_subsets:
                bar.set_postfix_str(task.metadata.name if subset == "default" else f"{task.metadata.name} {subset}")
                by_subset[subset] = _evaluate_subset(models[task.metadata.type], task, subset)
                bar.update()
            main = next(iter(_METRICS[task.metadata.type].values()))
            multilingual = task.metadata.is_multilingual
            results[task.metadata.name] = (
                TaskScores.over_languages(main, by_subset) if multilingual else TaskScores(main, by_subset["default"])
            )
    return Scores(results)


def _evaluate_subset(model: Any, task: AbsTask, subset: str) -> dict[str, float]:
    """The reported metrics of one subset.

    `AbsTask.evaluate` rather than `mteb.evaluate`, which adds a result cache and timing records per subset.
    """
    options = {"batch_size": 512, "show_progress_bar": False}
    scores = task.evaluate(model, SPLIT, [subset], encode_kwargs=options)[subset]  # type: ignore[arg-type]
    return {ours: float(scores[theirs]) for theirs, ours in _METRICS[task.metadata.type].items()}
