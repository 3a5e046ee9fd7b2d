"""Evaluate an encoder, or BM25, on mteb tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from .bm25 import BM25Search
from .encoder import MtebEncoder, TextEncoder
from .random_state import preserved_random_state
from .scores import Scores, TaskScores
from .search import EncoderSearch, LocalSearch
from .tasks import SPLIT

if TYPE_CHECKING:
    from mteb.abstasks.abstask import AbsTask

# mteb's name -> ours, by task type. The first is the main score.
_METRICS = {
    "Retrieval": {"ndcg_at_10": "ndcg_at_10", "recall_at_20": "recall_at_20", "recall_at_100": "recall_at_100"},
    "STS": {"cosine_spearman": "spearman"},
}


def evaluate(encoder: TextEncoder, tasks: Sequence[AbsTask], *, progress: bool = True) -> Scores:
    """Scores of an encoder on tasks made by `train.evaluation.tasks`. Every distinct text is encoded once.

    Nothing is written to disk, and the global random number generators are left as they were.

    Args:
        encoder: its `encode` gets long lists of texts and cuts them into batches itself.
        tasks: see `local_tasks`.
        progress: show a progress bar, one step per task and language.

    Raises:
        ValueError: the encoder returned a wrong shape, NaN or inf; the message names it.
    """
    adapter = MtebEncoder(encoder)
    return _run({"Retrieval": EncoderSearch(adapter), "STS": adapter}, tasks, progress)


def evaluate_bm25(tasks: Sequence[AbsTask], *, progress: bool = True) -> Scores:
    """Scores of BM25 on the retrieval tasks among `tasks`.

    STS is left out: BM25 ranks documents for a query, its score is no symmetric similarity of two texts.
    """
    return _run({"Retrieval": BM25Search()}, tasks, progress)


def _run(models: dict[str, LocalSearch | MtebEncoder], tasks: Sequence[AbsTask], progress: bool) -> Scores:
    """`models`: task type -> what runs it; tasks of other types are left out."""
    tasks = [task for task in tasks if task.metadata.type in models]
    steps = sum(len(task.hf_subsets) for task in tasks)
    results: dict[str, TaskScores] = {}
    with preserved_random_state(), tqdm(total=steps, desc="evaluate", unit="subset", disable=not progress) as bar:
        for task in tasks:
            by_subset = {}
            for subset in task.hf_subsets:
                bar.set_postfix_str(task.metadata.name if subset == "default" else f"{task.metadata.name} {subset}")
                by_subset[subset] = _run_subset(models[task.metadata.type], task, subset)
                bar.update()
            main = next(iter(_METRICS[task.metadata.type].values()))
            multilingual = task.metadata.is_multilingual
            results[task.metadata.name] = (
                TaskScores.over_languages(main, by_subset) if multilingual else TaskScores(main, by_subset["default"])
            )
    return Scores(results)


def _run_subset(model: Any, task: AbsTask, subset: str) -> dict[str, float]:
    """The reported metrics of one subset.

    `AbsTask.evaluate` rather than `mteb.evaluate`: the latter adds a result cache and timing records per subset.
    """
    options = {"batch_size": 512, "show_progress_bar": False}
    scores = task.evaluate(model, SPLIT, [subset], encode_kwargs=options)[subset]  # type: ignore[arg-type]
    return {ours: float(scores[theirs]) for theirs, ours in _METRICS[task.metadata.type].items()}
