"""Made-up data for a very small model, and its recipe."""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

COLORS = ["red", "blue", "green", "black", "white", "brown", "grey", "pink"]
THINGS = ["house", "river", "mountain", "garden", "window", "bridge", "forest", "engine", "letter", "candle"]

RECIPE = """
name = "small"
seed = 3
device = "cpu"
[tokenizer]
vocab_size = 320
[model]
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
max_position_embeddings = 128
[pretrain]
steps = 4
unigram_bias = true
batch_size = 4
max_length = 32
log_every = 2
sources = [{{ path = "{folder}/text.jsonl" }}]
[sft]
steps = 4
unigram_bias = true
log_every = 2
sources = [{{ path = "{folder}/instructions.jsonl", batch_size = 4, max_length = 48 }}]
[weak]
steps = 6
learning_rate = 1e-3
log_every = 2
sources = [{{ path = "{folder}/pairs.jsonl", batch_size = 16, max_length = 32 }}]
[mine]
pool_size = 12
max_score_ratio = 2.0
[supervised]
steps = 24
learning_rate = 2e-3
num_negatives = 3
dims = [16, 32]
replace_ratio = 1.01
replace_max_score = 1.0
replace_below = 0.5
log_every = 1
checkpoint_every = 5
[[supervised.sources]]
path = "{folder}/pairs.jsonl"
batch_size = 8
max_length = 32
weight = 2.0
[[supervised.sources]]
path = "{folder}/scored.jsonl"
kind = "scored"
batch_size = 8
max_length = 32
[evaluate]
retrieval = {{ path = "{folder}/pairs.jsonl" }}
max_length = 64
"""


def write_jsonl(file: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """The file's path, as load_rows takes it."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def write_small_data(folder: Path) -> None:
    """Write four data files and recipe.toml."""
    rng = random.Random(0)
    things = [f"{color} {thing}" for color in COLORS for thing in THINGS]
    stories = [
        f"There is a {name} that {rng.choice(things)} looks at, near the {rng.choice(things)}." for name in things
    ]
    pairs = list(zip(things, stories, strict=True))
    samples = [rng.sample(things, 2) for _ in range(60)]
    write_jsonl(folder / "text.jsonl", [{"text": story} for story in stories])
    write_jsonl(
        folder / "instructions.jsonl",
        [{"instruction": "Tell about it.", "input": thing, "output": story} for thing, story in pairs],
    )
    write_jsonl(folder / "pairs.jsonl", [{"query": thing, "positive": story} for thing, story in pairs])
    write_jsonl(
        folder / "scored.jsonl",
        [{"a": a, "b": b, "score": float(len(set(a.split()) & set(b.split())))} for a, b in samples],
    )
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder.as_posix()), encoding="utf-8")
