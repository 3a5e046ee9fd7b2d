"""What each command does: load the data, train (or mine, or evaluate), save."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from train.data.languages import TABLE_7_SHARES
from train.data.rows import Instruction, Pair, Scored, Text
from train.encoder import ModelEncoder
from train.files import atomic_folder
from train.loop import Stage, run_stage
from train.pairs import PairTable
from train.recipe import RecipeError, Source
from train.run import Run, need_sources
from train.stages.language_model import Pretrain, Sft
from train.stages.mine import mine as mine_pools
from train.stages.supervised import Supervised
from train.stages.weak import Weak
from train.teacher import teacher_scores
from train.tokenizer import save_tokenizer, train_tokenizer


def tokenizer(run: Run) -> None:
    """Train the tokenizer on the pretraining text."""
    recipe = run.recipe
    need_sources("pretrain", recipe.pretrain.sources)
    if not run.begin("tokenizer", "tokenizer.json"):
        return
    texts = [row.text for source in recipe.pretrain.sources for row in run.rows(source, Text)]
    trained = train_tokenizer(
        texts, vocab_size=recipe.tokenizer.vocab_size, max_texts=recipe.tokenizer.max_texts, seed=recipe.seed
    )
    with atomic_folder(run.folder / "tokenizer") as partial:
        save_tokenizer(trained, partial, max_length=recipe.evaluate.max_length)


def pretrain(run: Run) -> None:
    """Stage 1: next token on plain text."""

    def build(tokens: Tokenizer) -> Pretrain:
        recipe = run.recipe.pretrain
        texts = [[row.text for row in run.rows(source, Text)] for source in recipe.sources]
        return Pretrain(recipe, texts, tokens, seed=run.recipe.seed, device=run.device, precision=run.recipe.precision)

    _train(run, "pretrain", build)


def sft(run: Run) -> None:
    """Stage 2: next token on the outputs of (instruction, input, output)."""

    def build(tokens: Tokenizer) -> Sft:
        recipe = run.recipe.sft
        rows = [run.rows(source, Instruction) for source in recipe.sources]
        return Sft(recipe, rows, tokens, seed=run.recipe.seed, device=run.device, precision=run.recipe.precision)

    _train(run, "sft", build)


def weak(run: Run) -> None:
    """Stage 3: in-batch InfoNCE under the soft mask."""

    def build(tokens: Tokenizer) -> Weak:
        recipe = run.recipe.weak
        tables = [_filtered(run, source) for source in recipe.sources]
        return Weak(recipe, tables, tokens, seed=run.recipe.seed, device=run.device, precision=run.recipe.precision)

    _train(run, "weak", build)


def mine(run: Run) -> None:
    """The pools of hard negatives of stage 4, found with the model of stage 3."""
    recipe = run.recipe
    need_sources("supervised", recipe.supervised.sources)
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
        table = _pairs(run, source)
        pools[str(number)] = mine_pools(
            table, encoder.encode, recipe.mine, at_least=recipe.supervised.num_negatives, seed=recipe.seed
        )
    with atomic_folder(run.folder / "mine") as partial:
        save_file(pools, partial / "pools.safetensors")


def supervised(run: Run) -> None:
    """Stage 4: InfoNCE with dynamic hard negatives, CoSENT, Matryoshka."""

    def build(tokens: Tokenizer) -> Supervised:
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
                    f"supervised.sources.{number}: the mined pools are not of {source.path}; "
                    "mine again: python -m train mine --overwrite"
                )
            data.append((table, pool))
        return Supervised(recipe, data, tokens, seed=run.recipe.seed, device=run.device, precision=run.recipe.precision)

    _train(run, "supervised", build)


def _train(run: Run, name: str, build: Callable[[Tokenizer], Stage]) -> None:
    need_sources(name, getattr(run.recipe, name).sources)
    model, tokens = run.start_model(name), run.tokenizer()  # fails before an earlier result is touched
    if not run.begin(name, "model"):
        return
    run_stage(build(tokens), model, run.folder / name, resume=run.resume)
    run.save_finished(name, model)


def _pairs(run: Run, source: Source) -> PairTable:
    """The pairs of a source that can be drawn: with table 7's shares, those of its languages."""
    table = PairTable.of(run.rows(source, Pair))
    return table if source.shares == "rows" else table.only(np.isin(table.languages, list(TABLE_7_SHARES)))


def _filtered(run: Run, source: Source) -> PairTable:
    """The pairs of a source without those that the teacher scores too low (paper: below 0.4)."""
    recipe = run.recipe.weak
    rows = run.rows(source, Pair)
    table = PairTable.of(rows)
    if not source.filter:
        return table
    scores = teacher_scores(rows, recipe.teacher)
    table = table.only(scores >= recipe.min_teacher_score)
    if len(table) < len(rows):
        print(f"      weak: the teacher drops {len(rows) - len(table):,} of {len(rows):,} pairs of {source.path}")
    return table


def _load_pools(run: Run) -> dict[str, NDArray[np.int64]]:
    file = run.folder / "mine" / "pools.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there; first run: python -m train mine")
    return load_file(file)


PARTS: dict[str, Callable[[Run], None]] = {
    "tokenizer": tokenizer,
    "pretrain": pretrain,
    "sft": sft,
    "weak": weak,
    "mine": mine,
    "supervised": supervised,
}
