"""The demo: tokenizer, four stages, mining, and scores on held-out text after each stage."""

import time

from train.commands import COMMANDS
from train.evaluation.stages import BM25, UNTRAINED, StageScores
from train.plot import plot_run
from train.run import STAGES, Run


def demo(run: Run) -> None:
    """Run all commands and print the scores after each stage. With run.resume, finished results are kept."""
    start = time.perf_counter()
    COMMANDS["tokenizer"](run)  # which the untrained model needs
    scores = StageScores(run)
    for baseline in (BM25, UNTRAINED):
        _score(scores, baseline, run)
    for name, command in COMMANDS.items():
        if name != "tokenizer":
            command(run)
        if name in STAGES:
            _score(scores, name, run)
            scores.print()
    scores.print(language_tables=True)
    plot = plot_run(run.folder)
    model = run.folder / "supervised" / "model"
    print(f"\nDone in {(time.perf_counter() - start) / 60:.1f} minutes.")
    print(f"  model:  {model}   (load with SentenceTransformer({str(model)!r}))")
    print(f"  plot:   {plot}")
    print(f"  scores: {scores.file}")


def _score(scores: StageScores, name: str, run: Run) -> None:
    if not (run.resume and name in scores.results):
        scores.score(name)
