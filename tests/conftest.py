"""The kernels compiled for the CPU, and a whole run of a very small model on made-up data for the trainer's tests."""

import json
import os
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from conan_fast import _backends
from tests.support import emulated_module
from train.__main__ import main

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def emulated() -> ModuleType:
    """conan_fast._emulated, built if need be; from then on backend="emulated" exists."""
    if emulated_module.NAME in sys.modules:
        return sys.modules[emulated_module.NAME]
    if built := os.environ.get("CONAN_FAST_EMULATED"):
        return emulated_module.load(Path(built))
    if reason := emulated_module.compiler_missing():
        pytest.skip(reason)
    return emulated_module.load(emulated_module.build("tests"))


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernel_backend(request: pytest.FixtureRequest) -> tuple[str, str]:
    """(backend, device) of the kernels: on the CPU emulation always, and on a GPU where kernels and GPU are there."""
    if request.param == "emulated":
        request.getfixturevalue("emulated")
        return "emulated", "cpu"
    if reason := _backends.missing_reason("cuda"):
        pytest.skip(reason)
    return "cuda", "cuda"


COLOURS = ["red", "blue", "green", "black", "white", "brown", "grey", "pink"]
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


def write_jsonl(file: Path, rows: list[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with data and recipe.toml."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    things = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
    stories = [
        f"There is a {name} that {rng.choice(things)} looks at, near the {rng.choice(things)}." for name in things
    ]
    write_jsonl(folder / "text.jsonl", [{"text": story} for story in stories])
    write_jsonl(
        folder / "instructions.jsonl",
        [{"instruction": "Tell about it.", "input": t, "output": s} for t, s in zip(things, stories, strict=True)],
    )
    write_jsonl(folder / "pairs.jsonl", [{"query": t, "positive": s} for t, s in zip(things, stories, strict=True)])
    write_jsonl(
        folder / "scored.jsonl",
        [
            {"a": a, "b": b, "score": float(len(set(a.split()) & set(b.split())))}
            for a, b in (rng.sample(things, 2) for _ in range(60))
        ],
    )
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder.as_posix()), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def small_run(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run up to mining, made by the commands a user types."""
    output = tmp_path_factory.mktemp("runs") / "small"
    for command in ("tokenizer", "pretrain", "sft", "weak", "mine"):
        assert main([command, "--recipe", str(small_data / "recipe.toml"), "--output", str(output)]) == 0
    return output
