"""Typed recipes: a TOML file, checked by pydantic, any field of which can be set on the command line.

The defaults are the paper's values where the paper has one (sections 3 and 4); where it has none, a usual value.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"
RECIPE_FILE = "recipe.json"  # in the folder of a run


class RecipeError(ValueError):
    """A recipe that cannot be used; the message says which field and why."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class Source(Strict):
    """Where rows come from, and how they are drawn."""

    path: str = Field(description='a .jsonl or .parquet file, a folder saved by datasets, a hub name, or "django:PART"')
    split: str = Field("train", description="split of a data set that has several")
    columns: dict[str, str] = Field({}, description="our column name -> the file's, where they differ")
    kind: Literal["pairs", "scored"] = Field("pairs", description="(query, positive, ...) rows or (a, b, score) rows")
    weight: float = Field(1.0, gt=0, description="share of the steps (pretrain: of the rows) drawn from here")
    batch_size: int = Field(64, ge=1, description="rows of one step")
    max_length: int = Field(512, ge=2, description="tokens kept of each text")
    shares: Literal["rows", "table7"] = Field("rows", description="languages by their rows, or by the paper's table 7")
    filter: bool = Field(True, description="let the teacher of the weak stage drop pairs of this source")


class TokenizerRecipe(Strict):
    """Byte-level BPE, trained on the text of the pretraining sources."""

    vocab_size: int = Field(150_000, ge=258)
    max_texts: int = Field(400_000, ge=1, description="texts sampled to train on (the paper: about 400k documents)")


class ModelRecipe(Strict):
    """A Llama; the defaults are Conan-Embedding-v2's (section 3.1)."""

    hidden_size: int = Field(3584, ge=8)
    intermediate_size: int = Field(8192, ge=8)
    num_hidden_layers: int = Field(8, ge=1)
    num_attention_heads: int = Field(32, ge=1)
    num_key_value_heads: int = Field(8, ge=1)
    max_position_embeddings: int = Field(32_768, ge=2)
    rope_theta: float = Field(10_000.0, gt=0)
    initializer_range: float = Field(0.02, gt=0)
    embedding_std: float = Field(0.02, gt=0, description="of the token embeddings at the start")
    depth_scaled_init: bool = Field(
        False, description="start the layers' output projections smaller by sqrt(2 * num_hidden_layers), as GPT-2 does"
    )
    tie_word_embeddings: bool = Field(True, description="the paper's parameter count implies tied embeddings")

    @model_validator(mode="after")
    def _heads(self) -> "ModelRecipe":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        return self


class StageRecipe(Strict):
    """What all training stages have in common."""

    steps: int = Field(1000, ge=1, description="optimiser steps")
    learning_rate: float = Field(1e-4, gt=0, description="peak of AdamW's learning rate")
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps in which the rate rises from 0")
    decay: Literal["constant", "linear", "cosine"] = Field("cosine", description="from the peak down to min_rate")
    min_rate: float = Field(0.1, ge=0, le=1, description="where the decay ends, as a share of the peak")
    weight_decay: float = Field(0.001, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: float = Field(1.0, gt=0)
    micro_batch_tokens: int = Field(65_536, ge=1, description="tokens of one forward; a larger batch is accumulated")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")
    log_every: int = Field(10, ge=1, description="steps between lines of metrics")
    sources: list[Source] = Field([], description="the data")


class LanguageModelRecipe(StageRecipe):
    """What stages 1 and 2 share."""

    unigram_bias: bool = Field(
        False,
        description="add each token's log frequency to the logits, so that the model has only the context to learn; "
        "for short training (see docs/tiny-recipe.md)",
    )


class PretrainRecipe(LanguageModelRecipe):
    """Stage 1: next token on plain text, causal."""

    batch_size: int = Field(256, ge=1, description="sequences of one step")
    max_length: int = Field(32_768, ge=2, description="tokens of one sequence; longer texts are cut into several")


class SftRecipe(LanguageModelRecipe):
    """Stage 2: next token on the output of (instruction, input, output), causal."""

    learning_rate: float = Field(2e-5, gt=0)
    warmup: float = Field(0.02, ge=0, le=1)


class ContrastiveRecipe(StageRecipe):
    """What the two embedding stages share."""

    temperature: float = Field(0.05, gt=0, description="InfoNCE's")
    dims: list[int] = Field([], description="Matryoshka dims; empty: the model's hidden size alone")


class WeakRecipe(ContrastiveRecipe):
    """Stage 3: in-batch InfoNCE (eq. 1) under the soft mask (eq. 3 and 4)."""

    soft_mask: Literal["linear", "accelerating", "decelerating", "off"] = Field(
        "linear", description='alpha over the stage; "off": bidirectional from the first step'
    )
    saturation: Literal["key", "query", "uniform"] = Field("key", description="see conan_fast.soft_mask")
    teacher: str = Field(
        "", description='"" (none), "tfidf", or a SentenceTransformer; rows with a teacher_score column need none'
    )
    min_teacher_score: float = Field(0.4, description="pairs below are dropped")


class MineRecipe(Strict):
    """The pool of hard negatives of each pair, found with the model of the weak stage."""

    pool_size: int = Field(50, ge=1, description="negatives kept per pair, hardest first")
    search: int = Field(100, ge=1, description="neighbours looked at")
    max_score_ratio: float = Field(0.95, gt=0, description="drop candidates above this share of the positive's score")
    index: str = Field("Flat", description='faiss index factory string; "Flat" is exact, "IVF4096,Flat" for millions')


class SupervisedRecipe(ContrastiveRecipe):
    """Stage 4: InfoNCE with hard negatives, CoSENT, Matryoshka, dynamic hard negatives (eq. 5 and 6)."""

    num_negatives: int = Field(7, ge=0, description="hard negatives of each pair")
    negative_scope: Literal["shared", "private"] = Field("shared", description="see conan_fast.info_nce")
    cosent_temperature: float = Field(0.05, gt=0)
    dynamic_negatives: bool = Field(True, description="replace negatives that became easy")
    replace_below: float = Field(0.4, description="eq. 6: replace where the first score was below this")
    replace_ratio: float = Field(1.2, gt=0, description="eq. 6: or where ratio * score < first score ...")
    replace_max_score: float = Field(0.7, description="eq. 6: ... and score < this")


class EvaluateRecipe(Strict):
    retrieval: Source | None = Field(None, description="(query, positive) rows of one language")
    crosslingual: Source | None = Field(None, description="(query, positive, language) rows")
    sts: Source | None = Field(None, description="(a, b, score) rows")
    max_length: int = Field(512, ge=2, description="tokens kept of each text")
    batch_tokens: int = Field(16_384, ge=1, description="tokens of one forward")


class Recipe(Strict):
    """A whole run."""

    name: str = Field(description="for people")
    output: str = Field("", description='folder of the run; empty: "runs/NAME"')
    seed: int = Field(0, ge=0)
    device: str = Field("auto", description='"auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...')
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 autocast on a GPU that has it")
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    model: ModelRecipe = ModelRecipe()
    pretrain: PretrainRecipe = PretrainRecipe()
    sft: SftRecipe = SftRecipe()
    weak: WeakRecipe = WeakRecipe()
    mine: MineRecipe = MineRecipe()
    supervised: SupervisedRecipe = SupervisedRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()

    @model_validator(mode="after")
    def _dims_fit(self) -> "Recipe":
        for name, dims in (("weak", self.weak.dims), ("supervised", self.supervised.dims)):
            for dim in dims:
                if not 1 <= dim <= self.model.hidden_size:
                    raise ValueError(f"{name}.dims: {dim} is not in 1..{self.model.hidden_size} (model.hidden_size)")
        longest = self.model.max_position_embeddings
        if self.pretrain.max_length > longest:
            raise ValueError(
                f"pretrain.max_length: {self.pretrain.max_length} exceeds model.max_position_embeddings {longest}"
            )
        return self

    @property
    def folder(self) -> Path:
        return Path(self.output or f"runs/{self.name}")


def load_recipe(name_or_path: str, overrides: Mapping[str, str] | None = None) -> Recipe:
    """Read a recipe by the name of one in train/recipes, the path of a TOML file, or the folder of an earlier run.

    Args:
        overrides: dotted field -> value as written in TOML (strings need no quotes), e.g. {"weak.steps": "100"}.

    Raises:
        RecipeError: for a file that is not there or not TOML, an unknown field, or a value that does not fit.
    """
    path = Path(name_or_path) if name_or_path.endswith(".toml") else RECIPES / f"{name_or_path}.toml"
    if (Path(name_or_path) / RECIPE_FILE).is_file():
        path = Path(name_or_path) / RECIPE_FILE
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise RecipeError(
            f"recipe: no file {path}; taken are a path ending in .toml, the folder of a run, or one of: {known}"
        )
    try:
        text = path.read_text(encoding="utf-8")
        tree: dict[str, Any] = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:  # both decoders' errors are
        raise RecipeError(f"{path}: not {path.suffix[1:].upper()}: {error}") from None
    for field, value in (overrides or {}).items():
        _set(tree, field, _toml_value(value))
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])) or 'recipe'}: {_message(dict(e))}" for e in error.errors()]
        raise RecipeError(f"{path}: the recipe does not fit:\n" + "\n".join(lines)) from None


def describe_fields(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """One line per field that can be set: dotted name, default, meaning."""
    for name, field in model.model_fields.items():
        inner = _inner_model(field)
        if inner is not None:
            dotted = f"{prefix}{name}." + ("N." if get_origin(field.annotation) is list else "")
            yield from describe_fields(inner, dotted)
        else:
            default = "" if field.is_required() else f" = {json.dumps(field.get_default())}"
            yield f"--{prefix}{name}{default}" + (f"   {field.description}" if field.description else "")


def _message(error: dict[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown field"
    if error["type"] == "missing":
        return "is required"
    return f"{error['msg']}, got {error['input']!r}" if error["loc"] else str(error["msg"])


def _inner_model(field: FieldInfo) -> type[BaseModel] | None:
    annotations: Sequence[Any] = [field.annotation]
    if get_origin(field.annotation) in (list, Union, type(int | None)):
        annotations = get_args(field.annotation)
    return next((a for a in annotations if isinstance(a, type) and issubclass(a, BaseModel)), None)


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _set(tree: dict[str, Any], field: str, value: Any) -> None:
    *parents, last = field.split(".")
    node: Any = tree
    for depth, key in enumerate(parents):
        node = node[_position(node, key, field)] if isinstance(node, list) else node.setdefault(key, {})
        if not isinstance(node, dict | list):
            raise RecipeError(f"{field}: {'.'.join(parents[: depth + 1])} is a value, it has no fields")
    if isinstance(node, list):
        node[_position(node, last, field)] = value
    else:
        node[last] = value


def _position(items: list[Any], key: str, field: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise RecipeError(f"{field}: {key!r} is not a position in a list of {len(items)}")
    return int(key)
