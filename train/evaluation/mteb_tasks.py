"""Evaluate an encoder on mteb's own tasks and benchmarks, whose data mteb downloads from the hub."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from train.evaluation.encoder import TextEncoder
from train.evaluation.mteb_adapter import MtebAdapter, encode_checked
from train.evaluation.random_state import preserved_random_state
from train.evaluation.scores import Scores, TaskScores

if TYPE_CHECKING:
    from mteb.abstasks.abstask import AbsTask
    from mteb.results import TaskResult


class EvaluationError(RuntimeError):
    """The data of a task did not load; the message names the task, the data and the reason."""


def evaluate_mteb_tasks(encoder: TextEncoder, names: Sequence[str], *, progress: bool = True) -> Scores:
    """Main scores on mteb tasks ("STSBenchmark") and all tasks of mteb benchmarks ("MTEB(eng, v2)").

    A task with several subsets also gets a score per subset. `datasets` caches the downloaded data on disk; results and
    vectors are not cached, as mteb's corpora may be large.

    Raises:
        ValueError: unknown name (all names are checked before any download), or the encoder returned a wrong shape, NaN
            or inf.
        EvaluationError: the data of a task did not load.
        TypeError: `names` is a single string.
    """
    if isinstance(names, str):
        raise TypeError(f"names: got the string {names!r}; expected a list of names")
    with preserved_random_state():
        tasks = _tasks_by_name(names)
        encode_checked(encoder, ["a"])  # fail before any download
        return Scores({name: _evaluate_task(encoder, task, progress) for name, task in tasks.items()})


def _tasks_by_name(names: Iterable[str]) -> dict[str, AbsTask]:
    import mteb

    found: dict[str, AbsTask] = {}
    for name in names:
        try:
            tasks = list(mteb.get_benchmark(name).tasks)
        except KeyError:
            try:
                tasks = [mteb.get_task(name)]
            except KeyError as error:
                raise ValueError(f"names: mteb has no task or benchmark {name!r}{_suggestion(name)}") from error
        found |= {task.metadata.name: task for task in tasks}
    return found


def _suggestion(name: str) -> str:
    import mteb

    known = [benchmark.name for benchmark in mteb.get_benchmarks()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mteb warns for each beta task
        known += [task.metadata.name for task in mteb.get_tasks()]
    close = difflib.get_close_matches(name, known)
    return f"; did you mean {', '.join(close)}?" if close else ""


def _evaluate_task(encoder: TextEncoder, task: AbsTask, progress: bool) -> TaskScores:
    import mteb

    parts: list[AbsTask] = getattr(task.metadata, "tasks", [task])  # an aggregate task such as CQADupstack has several
    try:
        for part in parts:
            _load(part)
        adapter = MtebAdapter(encoder, cache=False)
        result = mteb.evaluate(adapter, task, cache=None, co2_tracker=False, show_progress_bar=progress)
    finally:
        for part in parts:
            if part.data_loaded:
                part.unload_data()
    return _main_scores(result.task_results[0], task.metadata.main_score)


def _load(task: AbsTask) -> None:
    try:
        task.load_data()
    except Exception as error:  # the hub, the disk and the data set's reader raise many types
        name, path = task.metadata.name, task.metadata.dataset["path"]
        raise EvaluationError(f"{name}: data {path!r} did not load: {type(error).__name__}: {error}") from error


def _main_scores(result: TaskResult, main_metric: str) -> TaskScores:
    """The main score as mteb defines it, the mean over splits and subsets; per subset, the mean over splits."""
    by_subset: dict[str, list[float]] = {}
    for rows in result.scores.values():
        for row in rows:
            by_subset.setdefault(row["hf_subset"], []).append(float(row["main_score"]))
    subsets = {subset: {main_metric: math.fsum(values) / len(values)} for subset, values in by_subset.items()}
    return TaskScores(main_metric, {main_metric: float(result.get_score())}, subsets if len(subsets) > 1 else {})
