"""Recipes: TOML files, validated by pydantic; any field can be set on the command line.

The defaults are the paper's values (sections 3 and 4) or, if it has none, common ones.
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
    """An invalid recipe; the message names the field and the reason."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class Source(Strict):
    """Where rows come from and how they are sampled."""

    path: str = Field(description='.jsonl or .parquet file, folder saved by datasets, hub name, or "django:PART"')
    split: str = Field("train", description="split of a data set with several splits")
    columns: dict[str, str] = Field({}, description="our column name -> the file's, if different")
    kind: Literal["pairs", "scored"] = Field("pairs", description="rows are (query, positive, ...) or (a, b, score)")
    weight: float = Field(1.0, gt=0, description="relative share of the steps (pretrain: of the rows)")
    batch_size: int = Field(64, ge=1, description="rows per step")
    max_length: int = Field(512, ge=2, description="tokens per text; longer texts are truncated")
    shares: Literal["rows", "table7"] = Field(
        "rows", description="sample languages by number of rows or by the paper's table 7"
    )
    filter: bool = Field(True, description="weak stage: drop pairs with a low teacher score")


class TokenizerRecipe(Strict):
    """Byte-level BPE, trained on the pretraining text."""

    vocab_size: int = Field(150_000, ge=258, description="number of tokens")
    max_texts: int = Field(400_000, ge=1, description="texts sampled for training (paper: about 400k documents)")


class ModelRecipe(Strict):
    """A Llama; the defaults are Conan-Embedding-v2's (section 3.1)."""

    hidden_size: int = Field(3584, ge=8, description="embedding dims")
    intermediate_size: int = Field(8192, ge=8, description="hidden dims of the MLPs")
    num_hidden_layers: int = Field(8, ge=1, description="Transformer blocks")
    num_attention_heads: int = Field(32, ge=1, description="query heads")
    num_key_value_heads: int = Field(8, ge=1, description="key/value heads (grouped-query attention)")
    max_position_embeddings: int = Field(32_768, ge=2, description="longest sequence, in tokens")
    rope_theta: float = Field(10_000.0, gt=0, description="base of the rotary position embeddings")
    initializer_range: float = Field(0.02, gt=0, description="initial standard deviation of the weights")
    embedding_std: float = Field(0.02, gt=0, description="initial standard deviation of the token embeddings")
    depth_scaled_init: bool = Field(
        False, description="divide the initial output projections by sqrt(2 * num_hidden_layers), like GPT-2"
    )
    tie_word_embeddings: bool = Field(
        True, description="share token embeddings and output layer; the paper's parameter count implies it"
    )

    @model_validator(mode="after")
    def _heads(self) -> "ModelRecipe":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of {self.num_attention_heads} heads")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        return self


class StageRecipe(Strict):
    """Fields of all training stages."""

    steps: int = Field(1000, ge=1, description="optimizer steps")
    learning_rate: float = Field(1e-4, gt=0, description="peak learning rate of AdamW")
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps with rising learning rate")
    decay: Literal["constant", "linear", "cosine"] = Field("cosine", description="from the peak to min_rate")
    min_rate: float = Field(0.1, ge=0, le=1, description="final learning rate, as a share of the peak")
    weight_decay: float = Field(0.001, ge=0, description="of AdamW; not applied to norms")
    betas: tuple[float, float] = Field((0.9, 0.98), description="of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    micro_batch_tokens: int = Field(65_536, ge=1, description="tokens per forward pass; larger batches are split")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")
    log_every: int = Field(10, ge=1, description="steps between log entries")
    sources: list[Source] = Field([], description="data sources")


class LanguageModelRecipe(StageRecipe):
    """Fields of stages 1 and 2."""

    unigram_bias: bool = Field(
        False,
        description="add each token's log frequency to the logits, so that the model need not learn it; "
        "for short training (see docs/demo.md)",
    )


class PretrainRecipe(LanguageModelRecipe):
    """Stage 1: next-token prediction on plain text, causal."""

    batch_size: int = Field(256, ge=1, description="sequences per step")
    max_length: int = Field(32_768, ge=2, description="tokens per sequence; longer texts are split")


class SftRecipe(LanguageModelRecipe):
    """Stage 2: next-token prediction on the output of (instruction, input, output), causal."""

    learning_rate: float = Field(2e-5, gt=0, description="peak learning rate of AdamW")
    warmup: float = Field(0.02, ge=0, le=1, description="share of the steps with rising learning rate")


class ContrastiveRecipe(StageRecipe):
    """Fields of the two embedding stages."""

    temperature: float = Field(0.05, gt=0, description="of InfoNCE")
    dims: list[int] = Field([], description="Matryoshka dims; empty: only the full hidden size")


class WeakRecipe(ContrastiveRecipe):
    """Stage 3: in-batch InfoNCE (eq. 1) under the soft mask (eq. 3 and 4)."""

    soft_mask: Literal["linear", "accelerating", "decelerating", "off"] = Field(
        "linear", description='curve of alpha over the stage; "off": bidirectional from the first step'
    )
    saturation: Literal["key", "query", "uniform"] = Field("key", description="see conan_fast.soft_mask")
    teacher: str = Field(
        "", description='"" (none), "tfidf", or a SentenceTransformer; not used for rows with a teacher_score'
    )
    min_teacher_score: float = Field(0.4, description="pairs with a lower teacher score are dropped")


class MineRecipe(Strict):
    """Pools of hard negatives, found with the model of the weak stage."""

    pool_size: int = Field(50, ge=1, description="negatives kept per pair, hardest first")
    search: int = Field(100, ge=1, description="nearest neighbors considered")
    max_score_ratio: float = Field(0.95, gt=0, description="drop candidates above this ratio to the positive's score")
    index: str = Field("Flat", description='faiss index factory string; "Flat" is exact, "IVF4096,Flat" for millions')


class SupervisedRecipe(ContrastiveRecipe):
    """Stage 4: InfoNCE with dynamic hard negatives (eq. 5 and 6), CoSENT, Matryoshka dims."""

    num_negatives: int = Field(7, ge=0, description="hard negatives per pair")
    negative_scope: Literal["shared", "private"] = Field("shared", description="see conan_fast.info_nce")
    cosent_temperature: float = Field(0.05, gt=0, description="of CoSENT")
    dynamic_negatives: bool = Field(True, description="replace negatives that became easy")
    replace_below: float = Field(0.4, description="eq. 6: replace if the first score was lower")
    replace_ratio: float = Field(1.2, gt=0, description="eq. 6: or if replace_ratio * score < first score ...")
    replace_max_score: float = Field(0.7, description="eq. 6: ... and score < replace_max_score")


class EvaluateRecipe(Strict):
    retrieval: Source | None = Field(None, description="(query, positive) rows of one language")
    crosslingual: Source | None = Field(None, description="(query, positive, language) rows")
    sts: Source | None = Field(None, description="(a, b, score) rows")
    max_length: int = Field(512, ge=2, description="tokens per text; longer texts are truncated")
    batch_tokens: int = Field(16_384, ge=1, description="tokens per forward pass")


class Recipe(Strict):
    """All settings of a run."""

    name: str = Field(description="name of the run")
    output: str = Field("", description="folder of the run; empty: runs/NAME")
    seed: int = Field(0, ge=0, description="random seed")
    device: str = Field("auto", description='"auto" (a GPU if available), "cpu", "cuda", "cuda:1", ...')
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 autocast if the GPU supports it")
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
    """Load a recipe by name (of one in train/recipes), path of a TOML file, or folder of an earlier run.

    Args:
        overrides: dotted field -> value in TOML syntax (strings need no quotes), e.g. {"weak.steps": "100"}.

    Raises:
        RecipeError: the file does not exist or is not TOML, or a field is unknown or invalid.
    """
    path = Path(name_or_path) if name_or_path.endswith(".toml") else RECIPES / f"{name_or_path}.toml"
    if (Path(name_or_path) / RECIPE_FILE).is_file():
        path = Path(name_or_path) / RECIPE_FILE
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise RecipeError(
            f"recipe: {path} not found; expected a path ending in .toml, the folder of a run, or one of: {known}"
        )
    try:
        text = path.read_text(encoding="utf-8")
        tree: dict[str, Any] = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:  # base class of both decoders' errors
        raise RecipeError(f"{path}: not {path.suffix[1:].upper()}: {error}") from None
    for field, value in (overrides or {}).items():
        _set(tree, field, _toml_value(value))
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])) or 'recipe'}: {_message(dict(e))}" for e in error.errors()]
        raise RecipeError(f"{path}: invalid recipe:\n" + "\n".join(lines)) from None


def describe_fields(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """One line per field: dotted name, default, description."""
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
        node = node[_list_index(node, key, field)] if isinstance(node, list) else node.setdefault(key, {})
        if not isinstance(node, dict | list):
            raise RecipeError(f"{field}: {'.'.join(parents[: depth + 1])} is a value without fields")
    if isinstance(node, list):
        node[_list_index(node, last, field)] = value
    else:
        node[last] = value


def _list_index(items: list[Any], key: str, field: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise RecipeError(f"{field}: {key!r} is not an index into a list of {len(items)}")
    return int(key)
