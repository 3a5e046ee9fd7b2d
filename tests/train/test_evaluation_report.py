"""Tables of scores, and scores.json."""

from __future__ import annotations

import io
import json
import math
import os

import pytest
from rich.console import Console

from train.evaluation.report import load_report, print_report, save_report
from train.evaluation.scores import Scores, TaskScores


def scores(ndcg: float, spearman: float | None) -> Scores:
    languages = {"de": {"ndcg_at_10": ndcg}, "zh": {"ndcg_at_10": ndcg / 2}}
    tasks = {
        "HeadingToSection": TaskScores("ndcg_at_10", {"ndcg_at_10": ndcg, "recall_at_20": 1.0}),
        "CrossLingualMessages": TaskScores.over_languages("ndcg_at_10", languages),
    }
    if spearman is not None:
        tasks["DocumentTreeSTS"] = TaskScores("spearman", {"spearman": spearman})
    return Scores(tasks)


STAGES = ["BM25", "untrained", "pretrain", "sft", "weak", "supervised"]
RESULTS = {stage: scores(0.1 * (i + 1), 0.05 * i if i else None) for i, stage in enumerate(STAGES)}


def shown(languages: bool = False) -> list[list[str]]:
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(RESULTS, language_tables=languages, console=console)
    lines = console.export_text().splitlines()
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


def test_table_has_a_row_for_every_stage():
    rows = shown()
    assert [row[0] for row in rows] == STAGES
    assert rows[0] == ["BM25", "0.100", "0.075", "0.050", "-"]
    assert rows[-1] == ["supervised", "0.600", "0.450", "0.300", "0.250"]


def test_language_table_has_a_row_for_every_language():
    rows = shown(languages=True)[len(STAGES) :]
    assert rows == [
        ["de", "0.100", "0.200", "0.300", "0.400", "0.500", "0.600"],
        ["zh", "0.050", "0.100", "0.150", "0.200", "0.250", "0.300"],
    ]


def test_json_round_trip(tmp_path):
    path = tmp_path / "run" / "scores.json"
    save_report(path, RESULTS)
    save_report(path, RESULTS)  # over an existing file
    assert load_report(path) == RESULTS
    assert list(load_report(path)) == STAGES
    assert os.listdir(path.parent) == ["scores.json"]


def test_undefined_score_is_null_in_the_file_and_said_in_the_table(tmp_path):
    path = tmp_path / "scores.json"
    results = {"collapsed": Scores({"DocumentTreeSTS": TaskScores("spearman", {"spearman": math.nan})})}
    save_report(path, results)
    assert json.loads(path.read_text())["collapsed"]["DocumentTreeSTS"]["metrics"] == {"spearman": None}
    assert math.isnan(load_report(path)["collapsed"]["DocumentTreeSTS"].main_score)
    console = Console(width=100, record=True, file=io.StringIO())
    print_report(results, console=console)
    assert "undefined" in console.export_text()


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "scores.json"
    save_report(path, RESULTS)
    broken = {"x": Scores({"t": TaskScores("m", {"m": math.inf})})}
    with pytest.raises(ValueError, match="JSON compliant"):
        save_report(path, broken)
    assert load_report(path) == RESULTS
    assert os.listdir(tmp_path) == ["scores.json"]


@pytest.mark.parametrize("content", ["", "[]", '{"BM25": {"task": {"main": "m"}}}', '{"BM25": 3}'])
def test_other_files_are_an_error_that_names_them(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"other\.json: not a report"):
        load_report(path)


def test_flat_names_for_a_metrics_log():
    assert scores(0.5, 0.25).flat() == {
        "HeadingToSection/ndcg_at_10": 0.5,
        "HeadingToSection/recall_at_20": 1.0,
        "CrossLingualMessages/ndcg_at_10": 0.375,
        "CrossLingualMessages/non_latin/ndcg_at_10": 0.25,
        "CrossLingualMessages/de/ndcg_at_10": 0.5,
        "CrossLingualMessages/zh/ndcg_at_10": 0.25,
        "DocumentTreeSTS/spearman": 0.25,
    }
