"""Results of an evaluation, as plain numbers without mteb's types."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from train.evaluation.language_tags import is_latin_script


@dataclass(frozen=True, slots=True)
class TaskScores:
    """Scores of one task, each in [0, 1] (Spearman: [-1, 1], NaN if undefined, as for constant vectors).

    mteb rounds retrieval metrics to five decimals.
    """

    main: str  # name of the main metric
    metrics: dict[str, float]  # of a multilingual task: means over its languages
    by_language: dict[str, dict[str, float]] = field(default_factory=dict)
    non_latin: dict[str, float] = field(default_factory=dict)  # means over the languages in other scripts than Latin

    @property
    def main_score(self) -> float:
        return self.metrics[self.main]

    @classmethod
    def over_languages(cls, main: str, languages: Mapping[str, dict[str, float]]) -> "TaskScores":
        """Means with equal weight for every language, regardless of its number of queries."""
        non_latin = [scores for language, scores in languages.items() if not is_latin_script(language)]
        return cls(main, _mean_metrics(list(languages.values())), dict(languages), _mean_metrics(non_latin))


def _mean_metrics(scores: list[dict[str, float]]) -> dict[str, float]:
    return {name: math.fsum(s[name] for s in scores) / len(scores) for name in scores[0]} if scores else {}


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one model: task name -> `TaskScores`."""

    tasks: dict[str, TaskScores]

    def __getitem__(self, task: str) -> TaskScores:
        return self.tasks[task]

    def flat(self) -> dict[str, float]:
        """All scores under flat names for a metrics log: "CrossLingualMessages/ndcg_at_10",
        "CrossLingualMessages/non_latin/ndcg_at_10", "CrossLingualMessages/de/ndcg_at_10"."""
        flat: dict[str, float] = {}
        for task, scores in self.tasks.items():
            groups = {"": scores.metrics, "non_latin/": scores.non_latin}
            groups |= {f"{language}/": metrics for language, metrics in scores.by_language.items()}
            for prefix, metrics in groups.items():
                flat |= {f"{task}/{prefix}{name}": value for name, value in metrics.items()}
        return flat

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with None for NaN."""
        return {
            task: {
                "main": scores.main,
                "metrics": _nan_to_none(scores.metrics),
                "languages": {language: _nan_to_none(metrics) for language, metrics in scores.by_language.items()},
                "non_latin": _nan_to_none(scores.non_latin),
            }
            for task, scores in self.tasks.items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Scores":
        """The inverse of `to_dict`. KeyError, TypeError, ValueError or AttributeError for other data."""
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
