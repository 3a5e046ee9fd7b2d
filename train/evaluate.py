"""Scores of the stages of a run on held-out text, beside BM25 and the untrained model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformers import LlamaForCausalLM

from train.data.rows import Pair, Scored
from train.encoder import ModelEncoder
from train.evaluation import (
    Scores,
    evaluate,
    evaluate_bm25,
    evaluate_named,
    load_report,
    local_tasks,
    print_report,
    save_report,
)
from train.recipe import RecipeError
from train.run import STAGES, Run

if TYPE_CHECKING:
    from mteb.abstasks.abstask import AbsTask

BM25, UNTRAINED = "BM25", "untrained"
ORDER = [BM25, UNTRAINED, *STAGES]


class Evaluation:
    """The recipe's held-out tasks, loaded once; results go to scores.json as they come."""

    def __init__(self, run: Run) -> None:
        recipe = run.recipe.evaluate
        if not (recipe.retrieval or recipe.crosslingual or recipe.sts):
            raise RecipeError("evaluate: the recipe names no task; set evaluate.retrieval.path or name mteb tasks")
        self.run = run
        self.file = run.folder / "scores.json"
        self.results: dict[str, Scores] = load_report(self.file) if self.file.is_file() else {}
        self._tasks: list[AbsTask] = local_tasks(
            retrieval=run.rows(recipe.retrieval, Pair) if recipe.retrieval else (),
            crosslingual=run.rows(recipe.crosslingual, Pair) if recipe.crosslingual else (),
            sts=run.rows(recipe.sts, Scored) if recipe.sts else (),
        )

    def score(self, name: str) -> Scores:
        """Score BM25, the untrained model or a finished stage, and keep the result."""
        encoder = None if name == BM25 else stage_encoder(self.run, name)
        scores = evaluate_bm25(self._tasks) if encoder is None else evaluate(encoder, self._tasks)
        self.results[name] = scores
        self.results = {key: self.results[key] for key in ORDER if key in self.results}
        save_report(self.file, self.results)
        return scores

    def print(self, *, languages: bool = False) -> None:
        print_report(self.results, languages=languages)


def stage_encoder(run: Run, name: str) -> ModelEncoder:
    """The encoder of a finished stage, under the mask that the stage ended with (causal for a language model)."""
    recipe = run.recipe.evaluate
    model: LlamaForCausalLM = run.untrained_model() if name == UNTRAINED else run.finished_model(name)
    is_causal = name == UNTRAINED or STAGES[name][1]
    return ModelEncoder(
        model,
        run.tokenizer(),
        alpha=0.0 if is_causal else 1.0,
        max_length=recipe.max_length,
        batch_tokens=recipe.batch_tokens,
        precision=run.recipe.precision,
    )


def evaluate_run(run: Run, names: Sequence[str], *, languages: bool) -> None:
    """Score everything that is finished on the recipe's tasks, or the last finished stage on mteb's tasks `names`."""
    finished = [stage for stage in STAGES if (run.folder / stage / "model").is_dir()]
    if not names:
        evaluation = Evaluation(run)
        for name in [BM25, UNTRAINED, *finished]:
            evaluation.score(name)
        evaluation.print(languages=languages)
        return
    if not finished:
        raise FileNotFoundError(f"{run.folder} holds no finished stage; first run: python -m train demo")
    print(f"Evaluating the {finished[-1]} model of {run.folder} on {', '.join(names)}")
    results = {finished[-1]: evaluate_named(stage_encoder(run, finished[-1]), list(names))}
    save_report(run.folder / "scores-mteb.json", results)
    print_report(results, languages=languages)
