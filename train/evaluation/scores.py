"""What an evaluation returns: plain numbers, nothing of mteb."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .languages import is_latin_script


@dataclass(frozen=True, slots=True)
class TaskScores:
    """Scores of one task, each in [0, 1] (Spearman: [-1, 1]; NaN where it is not defined, as for constant vectors).

    mteb rounds the retrieval metrics of a task, or of one of its languages, to five decimals.

    `metrics` are the means over the languages where there are several; `languages` then holds each by its code, and
    `non_latin` the means over the languages that are not written in the Latin script (empty where there is none).
    """

    main: str
    metrics: dict[str, float]
    languages: dict[str, dict[str, float]] = field(default_factory=dict)
    non_latin: dict[str, float] = field(default_factory=dict)

    @property
    def main_score(self) -> float:
        return self.metrics[self.main]

    @classmethod
    def over_languages(cls, main: str, languages: Mapping[str, dict[str, float]]) -> TaskScores:
        """Means with equal weight for every language, however many queries it has."""
        non_latin = [scores for language, scores in languages.items() if not is_latin_script(language)]
        return cls(main, _mean(list(languages.values())), dict(languages), _mean(non_latin))


def _mean(scores: list[dict[str, float]]) -> dict[str, float]:
    return {name: math.fsum(s[name] for s in scores) / len(scores) for name in scores[0]} if scores else {}


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one model: task name -> `TaskScores`."""

    tasks: dict[str, TaskScores]

    def __getitem__(self, task: str) -> TaskScores:
        return self.tasks[task]

    def flat(self) -> dict[str, float]:
        """One name per number, for a metrics log: ``CrossLingualMessages/ndcg_at_10``, ``.../non_latin/ndcg_at_10``,
        ``.../de/ndcg_at_10``."""
        numbers: dict[str, float] = {}
        for task, scores in self.tasks.items():
            groups = {"": scores.metrics, "non_latin/": scores.non_latin}
            groups |= {f"{language}/": metrics for language, metrics in scores.languages.items()}
            for prefix, metrics in groups.items():
                numbers |= {f"{task}/{prefix}{name}": value for name, value in metrics.items()}
        return numbers

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which knows no NaN: it becomes None."""
        return {
            task: {
                "main": scores.main,
                "metrics": _nan_to_none(scores.metrics),
                "languages": {language: _nan_to_none(metrics) for language, metrics in scores.languages.items()},
                "non_latin": _nan_to_none(scores.non_latin),
            }
            for task, scores in self.tasks.items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scores:
        """The inverse of `to_dict`; KeyError, TypeError, ValueError or AttributeError for anything else."""
        return cls(
            {
                task: TaskScores(
                    str(entry["main"]),
                    _none_to_nan(entry["metrics"]),
                    {language: _none_to_nan(metrics) for language, metrics in entry["languages"].items()},
                    _none_to_nan(entry["non_latin"]),
                )
                for task, entry in data.items()
            }
        )


def _nan_to_none(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def _none_to_nan(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in metrics.items()}
