"""The whole paper in order, tiny: tokenizer, four stages, mining, and scores on held-out text after each stage."""

import time

from train.commands import PARTS
from train.evaluate import BM25, UNTRAINED, Evaluation
from train.plot import plot_run
from train.run import STAGES, Run


def demo(run: Run) -> None:
    """Run every part and print the scores as they come; with run.resume what is finished stays."""
    start = time.perf_counter()
    evaluation: Evaluation | None = None
    for name, part in PARTS.items():
        part(run)
        if evaluation is None:  # the tokenizer is there: the untrained model can be built
            evaluation = Evaluation(run)
            for baseline in (BM25, UNTRAINED):
                _score(evaluation, baseline, run)
        if name in STAGES:
            _score(evaluation, name, run)
            evaluation.print()
    assert evaluation is not None
    evaluation.print(languages=True)
    picture = plot_run(run.folder)
    model = run.folder / "supervised" / "model"
    print(f"\nDone in {(time.perf_counter() - start) / 60:.1f} minutes.")
    print(f"  the model:   {model}   (SentenceTransformer({str(model)!r}) loads it)")
    print(f"  the picture: {picture}")
    print(f"  the scores:  {evaluation.file}")


def _score(evaluation: Evaluation, name: str, run: Run) -> None:
    if not (run.resume and name in evaluation.results):
        evaluation.score(name)
