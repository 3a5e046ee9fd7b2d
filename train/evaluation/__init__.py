"""Evaluation with mteb: tasks from rows, encoders, the BM25 baseline, reports. mteb itself is imported at first use."""

from .encoder import TextEncoder
from .named import EvaluationError, evaluate_named
from .report import load_report, print_report, save_report
from .run import evaluate, evaluate_bm25
from .scores import Scores, TaskScores
from .tasks import crosslingual_task, local_tasks, retrieval_task, sts_task

__all__ = [
    "EvaluationError",
    "Scores",
    "TaskScores",
    "TextEncoder",
    "crosslingual_task",
    "evaluate",
    "evaluate_bm25",
    "evaluate_named",
    "load_report",
    "local_tasks",
    "print_report",
    "retrieval_task",
    "save_report",
    "sts_task",
]
