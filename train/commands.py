"""The commands that make up a run: load the data, train or mine, save."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from train.data.languages import TABLE_7_SHARES
from train.data.rows import Instruction, Pair, Scored, Text
from train.evaluation.encoder import ModelEncoder
from train.files import atomic_folder
from train.loop import Stage, StageContext, run_stage
from train.pairs import PairTable
from train.recipe import RecipeError, Source
from train.run import Run, require_sources
from train.stages.mine import mine as mine_pools
from train.stages.pretrain import Pretrain
from train.stages.sft import Sft
from train.stages.supervised import Supervised
from train.stages.weak import Weak
from train.teacher import teacher_scores
from train.tokenizer import save_tokenizer, train_tokenizer


def tokenizer(run: Run) -> None:
    """Train the tokenizer on the pretraining text."""
    recipe = run.recipe
    require_sources("pretrain", recipe.pretrain.sources)
    if not run.begin("tokenizer", "tokenizer.json"):
        return
    texts = [row.text for source in recipe.pretrain.sources for row in run.rows(source, Text)]
    trained = train_tokenizer(
        texts, vocab_size=recipe.tokenizer.vocab_size, max_texts=recipe.tokenizer.max_texts, seed=recipe.seed
    )
    with atomic_folder(run.folder / "tokenizer") as partial:
        save_tokenizer(trained, partial, max_length=recipe.evaluate.max_length)


def pretrain(run: Run) -> None:
    """Stage 1: next-token prediction on plain text."""

    def build(context: StageContext) -> Pretrain:
        recipe = run.recipe.pretrain
        texts = [[row.text for row in run.rows(source, Text)] for source in recipe.sources]
        return Pretrain(recipe, texts, context)

    _train(run, "pretrain", build)


def sft(run: Run) -> None:
    """Stage 2: next-token prediction on the outputs of instructions."""

    def build(context: StageContext) -> Sft:
        recipe = run.recipe.sft
        return Sft(recipe, [run.rows(source, Instruction) for source in recipe.sources], context)

    _train(run, "sft", build)


def weak(run: Run) -> None:
    """Stage 3: in-batch InfoNCE under the soft mask."""

    def build(context: StageContext) -> Weak:
        recipe = run.recipe.weak
        return Weak(recipe, [_filtered_pairs(run, source) for source in recipe.sources], context)

    _train(run, "weak", build)


def mine(run: Run) -> None:
    """Pools of hard negatives for stage 4, found with the model of stage 3."""
    recipe = run.recipe
    require_sources("supervised", recipe.supervised.sources)
    if not run.begin("mine", "pools.safetensors"):
        return
    model, tokens = run.finished_model("weak"), run.tokenizer()
    pools: dict[str, NDArray[np.int64]] = {}
    for number, source in enumerate(recipe.supervised.sources):
        if source.kind != "pairs":
            continue
        encoder = ModelEncoder(
            model,
            tokens,
            alpha=1.0,
            max_length=source.max_length,
            batch_tokens=recipe.evaluate.batch_tokens,
            precision=recipe.precision,
            progress="mine",
        )
        pools[str(number)] = mine_pools(
            _pairs(run, source),
            encoder.encode,
            recipe.mine,
            at_least=recipe.supervised.num_negatives,
            seed=recipe.seed,
        )
    with atomic_folder(run.folder / "mine") as partial:
        save_file(pools, partial / "pools.safetensors")


def supervised(run: Run) -> None:
    """Stage 4: InfoNCE with dynamic hard negatives, CoSENT, Matryoshka dims."""

    def build(context: StageContext) -> Supervised:
        recipe = run.recipe.supervised
        pools = _load_pools(run)
        data: list[tuple[PairTable, NDArray[np.int64]] | Sequence[Scored]] = []
        for number, source in enumerate(recipe.sources):
            if source.kind == "scored":
                data.append(run.rows(source, Scored))
                continue
            table, pool = _pairs(run, source), pools.get(str(number))
            if pool is None or len(pool) != len(table):
                raise RecipeError(
                    f"supervised.sources.{number}: the mined pools do not belong to {source.path}; "
                    "mine again: python -m train mine --overwrite"
                )
            data.append((table, pool))
        return Supervised(recipe, data, context)

    _train(run, "supervised", build)


def _train(run: Run, name: str, build: Callable[[StageContext], Stage]) -> None:
    require_sources(name, getattr(run.recipe, name).sources)
    model, tokens = run.start_model(name), run.tokenizer()  # fails before an earlier result is removed
    if not run.begin(name, "model"):
        return
    context = StageContext(tokens, run.recipe.seed, run.device, run.recipe.precision)
    run_stage(build(context), model, run.folder / name, resume=run.resume)
    run.save_finished(name, model)


def _pairs(run: Run, source: Source) -> PairTable:
    """The pairs of a source that can be sampled: with table 7's shares, only those in its languages."""
    table = PairTable.of(run.rows(source, Pair))
    return table if source.shares == "rows" else table.only(np.isin(table.languages, list(TABLE_7_SHARES)))


def _filtered_pairs(run: Run, source: Source) -> PairTable:
    """The pairs of a source without those that the teacher scores too low (paper: below 0.4)."""
    recipe = run.recipe.weak
    rows = run.rows(source, Pair)
    table = PairTable.of(rows)
    if not source.filter:
        return table
    table = table.only(teacher_scores(rows, recipe.teacher) >= recipe.min_teacher_score)
    if len(table) < len(rows):
        print(f"      weak: the teacher drops {len(rows) - len(table):,} of {len(rows):,} pairs of {source.path}")
    return table


def _load_pools(run: Run) -> dict[str, NDArray[np.int64]]:
    file = run.folder / "mine" / "pools.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not found; first run: python -m train mine")
    return load_file(file)


COMMANDS: dict[str, Callable[[Run], None]] = {
    "tokenizer": tokenizer,
    "pretrain": pretrain,
    "sft": sft,
    "weak": weak,
    "mine": mine,
    "supervised": supervised,
}
