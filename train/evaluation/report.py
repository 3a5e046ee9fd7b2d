"""Compare the scores of several models: tables for the terminal, JSON for scores.json."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from train.evaluation.local_tasks import CROSSLINGUAL_MESSAGES, DOCUMENT_TREE_STS, HEADING_TO_SECTION
from train.evaluation.scores import Scores, TaskScores
from train.files import write_json

_TASK_TITLES = {
    HEADING_TO_SECTION: "heading -> section",
    CROSSLINGUAL_MESSAGES: "cross-lingual",
    DOCUMENT_TREE_STS: "STS",
}
_METRIC_TITLES = {"ndcg_at_10": "nDCG@10", "spearman": "Spearman", "cosine_spearman": "Spearman"}


def print_report(
    results: Mapping[str, Scores], *, language_tables: bool = False, console: Console | None = None
) -> None:
    """Print `score_table` and, if requested, the `language_table` of each multilingual task."""
    console = console or Console()
    console.print(score_table(results))
    if language_tables:
        for task in _tasks(results):
            if any(task in scores.tasks and scores[task].by_language for scores in results.values()):
                console.print(language_table(results, task))


def score_table(results: Mapping[str, Scores]) -> Table:
    """The main score of each task, one row per model or stage in the given order.

    A multilingual task has two columns: the mean over all languages, and over those not in the Latin script. "-" means
    that a model has no score (BM25 on STS).
    """
    columns: dict[str, tuple[str, str]] = {}
    for task, example in _tasks(results).items():
        title = f"{_TASK_TITLES.get(task, task)}\n{_METRIC_TITLES.get(example.main, example.main)}"
        mean_of = f"\nmean of {len(example.by_language)}" if example.by_language else ""
        columns[f"{title}{mean_of}"] = task, "metrics"
        if example.non_latin:
            columns[f"{title}\nnon-Latin scripts"] = task, "non_latin"
    table = Table("model")
    for title in columns:
        table.add_column(title, justify="right")
    for model, scores in results.items():
        table.add_row(model, *(_shown(_main_score(scores, *column)) for column in columns.values()))
    return table


def language_table(results: Mapping[str, Scores], task: str) -> Table:
    """The main score of a task, one row per language and one column per model."""
    models = {model: scores[task] for model, scores in results.items() if task in scores.tasks}
    table = Table("language", title=_TASK_TITLES.get(task, task))
    for model in models:
        table.add_column(model, justify="right")
    for language in dict.fromkeys(language for scores in models.values() for language in scores.by_language):
        values = (scores.by_language.get(language, {}).get(scores.main) for scores in models.values())
        table.add_row(language, *map(_shown, values))
    return table


def save_report(path: str | os.PathLike[str], results: Mapping[str, Scores]) -> None:
    """Write the results as JSON, atomically."""
    write_json(Path(path), {model: scores.to_dict() for model, scores in results.items()})


def load_report(path: str | os.PathLike[str]) -> dict[str, Scores]:
    """Read a file written by `save_report`.

    Raises:
        ValueError: the file is not a report; the message names it.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return {model: Scores.from_dict(scores) for model, scores in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a report of train.evaluation ({error!r})") from error


def _tasks(results: Mapping[str, Scores]) -> dict[str, TaskScores]:
    """Every task of any model, with the scores of one model as an example."""
    return {task: scores for model in results.values() for task, scores in model.tasks.items()}


def _main_score(scores: Scores, task: str, group: str) -> float | None:
    entry = scores.tasks.get(task)
    if entry is None:
        return None
    metrics: dict[str, float] = getattr(entry, group)
    return metrics.get(entry.main)


def _shown(value: float | None) -> str:
    return "-" if value is None else "undefined" if math.isnan(value) else f"{value:.3f}"
