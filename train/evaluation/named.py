"""Evaluation on mteb's own tasks and benchmarks, downloaded by mteb from the hub."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .encoder import MtebEncoder, TextEncoder, encode_checked
from .random_state import preserved_random_state
from .scores import Scores, TaskScores

if TYPE_CHECKING:
    from mteb.abstasks.abstask import AbsTask
    from mteb.results import TaskResult


class EvaluationError(RuntimeError):
    """The data of a task could not be had; the message names the task, the data and the reason."""


def evaluate_named(encoder: TextEncoder, names: Sequence[str], *, progress: bool = True) -> Scores:
    """Main scores on mteb tasks ("STSBenchmark") and benchmarks ("MTEB(eng, v2)", which stands for all its tasks).

    A task with several subsets also gets its score per subset. Results are not cached on disk; the downloaded data is,
    by the `datasets` library. Texts are encoded as often as mteb asks: its corpora may be too large to remember.

    Raises:
        ValueError: unknown name (all names are checked before any download), or the encoder returned a wrong shape, NaN
            or inf.
        EvaluationError: the data of a task could not be downloaded or read.
        TypeError: `names` is a single string.
    """
    if isinstance(names, str):
        raise TypeError(f"names: got the string {names!r}; taken is a list of names")
    with preserved_random_state():
        tasks = _tasks_by_name(names)
        encode_checked(encoder, ["a"])  # a broken encoder should not cost a download
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
                raise ValueError(f"names: mteb has no task or benchmark {name!r}{_near(name)}") from error
        found |= {task.metadata.name: task for task in tasks}
    return found


def _near(name: str) -> str:
    import mteb

    known = [benchmark.name for benchmark in mteb.get_benchmarks()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mteb warns of each task that is in beta
        known += [task.metadata.name for task in mteb.get_tasks()]
    near = difflib.get_close_matches(name, known)
    return f"; near it are {', '.join(near)}" if near else ""


def _evaluate_task(encoder: TextEncoder, task: AbsTask, progress: bool) -> TaskScores:
    import mteb

    parts: list[AbsTask] = getattr(task.metadata, "tasks", [task])  # an aggregate task (CQADupstack) has several
    try:
        for part in parts:
            _load(part)
        adapter = MtebEncoder(encoder, remember=False)
        result = mteb.evaluate(adapter, task, cache=None, co2_tracker=False, show_progress_bar=progress)
    finally:
        for part in parts:
            if part.data_loaded:
                part.unload_data()
    return _main_scores(result.task_results[0], task.metadata.main_score)


def _load(task: AbsTask) -> None:
    try:
        task.load_data()
    except Exception as error:  # whatever the hub, the disk or the reader of the data set may raise
        name, path = task.metadata.name, task.metadata.dataset["path"]
        raise EvaluationError(f"{name}: its data {path!r} did not load: {type(error).__name__}: {error}") from error


def _main_scores(result: TaskResult, main: str) -> TaskScores:
    """The main score as mteb defines it: the mean over splits and subsets. Per subset, its mean over splits."""
    by_subset: dict[str, list[float]] = {}
    for rows in result.scores.values():
        for row in rows:
            by_subset.setdefault(row["hf_subset"], []).append(float(row["main_score"]))
    subsets = {subset: {main: math.fsum(values) / len(values)} for subset, values in by_subset.items()}
    return TaskScores(main, {main: float(result.get_score())}, subsets if len(subsets) > 1 else {})
