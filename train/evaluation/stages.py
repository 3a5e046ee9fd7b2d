"""Scores of a run's stages on held-out text, compared with BM25 and the untrained model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from train.data.rows import Pair, Scored
from train.evaluation.encoder import ModelEncoder
from train.evaluation.evaluate import evaluate, evaluate_bm25
from train.evaluation.local_tasks import local_tasks
from train.evaluation.mteb_tasks import evaluate_mteb_tasks
from train.evaluation.report import load_report, print_report, save_report
from train.evaluation.scores import Scores
from train.recipe import RecipeError
from train.run import STAGES, Run

if TYPE_CHECKING:
    from mteb.abstasks.abstask import AbsTask

BM25, UNTRAINED = "BM25", "untrained"
ORDER = [BM25, UNTRAINED, *STAGES]


class StageScores:
    """Scores a run's stages on the recipe's held-out tasks and keeps the results in scores.json."""

    def __init__(self, run: Run) -> None:
        recipe = run.recipe.evaluate
        if not (recipe.retrieval or recipe.crosslingual or recipe.sts):
            raise RecipeError("evaluate: the recipe has no task; set evaluate.retrieval.path, or name mteb tasks")
        self.run = run
        self.file = run.folder / "scores.json"
        self.results: dict[str, Scores] = load_report(self.file) if self.file.is_file() else {}
        self._tasks: list[AbsTask] = local_tasks(
            retrieval=run.rows(recipe.retrieval, Pair) if recipe.retrieval else (),
            crosslingual=run.rows(recipe.crosslingual, Pair) if recipe.crosslingual else (),
            sts=run.rows(recipe.sts, Scored) if recipe.sts else (),
        )

    def score(self, name: str) -> None:
        """Score BM25, the untrained model or a finished stage, and save the result."""
        if name == BM25:
            self.results[name] = evaluate_bm25(self._tasks)
        else:
            self.results[name] = evaluate(stage_encoder(self.run, name), self._tasks)
        self.results = {key: self.results[key] for key in ORDER if key in self.results}
        save_report(self.file, self.results)

    def print(self, *, language_tables: bool = False) -> None:
        print_report(self.results, language_tables=language_tables)


def stage_encoder(run: Run, name: str) -> ModelEncoder:
    """The encoder of a finished stage (or UNTRAINED), with the mask that the stage ends with."""
    recipe = run.recipe.evaluate
    is_causal = name == UNTRAINED or STAGES[name][1]
    return ModelEncoder(
        run.untrained_model() if name == UNTRAINED else run.finished_model(name),
        run.tokenizer(),
        alpha=0.0 if is_causal else 1.0,
        max_length=recipe.max_length,
        batch_tokens=recipe.batch_tokens,
        precision=run.recipe.precision,
    )


def evaluate_run(run: Run, mteb_names: Sequence[str], *, language_tables: bool) -> None:
    """Score all finished stages on the recipe's tasks or, given mteb tasks, the last finished stage on those."""
    finished = [stage for stage in STAGES if (run.folder / stage / "model").is_dir()]
    if not mteb_names:
        scores = StageScores(run)
        for name in [BM25, UNTRAINED, *finished]:
            scores.score(name)
        scores.print(language_tables=language_tables)
        return
    if not finished:
        raise FileNotFoundError(f"{run.folder} has no finished stage; first run: python -m train demo")
    print(f"Evaluating the {finished[-1]} model of {run.folder} on {', '.join(mteb_names)}")
    results = {finished[-1]: evaluate_mteb_tasks(stage_encoder(run, finished[-1]), mteb_names)}
    save_report(run.folder / "scores-mteb.json", results)
    print_report(results, language_tables=language_tables)
