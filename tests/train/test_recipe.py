"""Loading recipes, invalid fields, and fields set on the command line."""

from pathlib import Path
from typing import get_args

import pytest
import torch

from conan_fast.attention.soft_mask import SATURATIONS
from train.model import build_model
from train.recipe import RECIPES, RecipeError, WeakRecipe, describe_fields, load_recipe


@pytest.mark.parametrize("name", sorted(p.stem for p in RECIPES.glob("*.toml")))
def test_shipped_recipes_load(name: str) -> None:
    assert load_recipe(name).name == name


def test_papers_model_has_the_papers_parameter_count() -> None:
    recipe = load_recipe("conan-1.4b")
    with torch.device("meta"):
        model = build_model(recipe.model, recipe.tokenizer.vocab_size)
    count = sum(p.numel() for p in model.parameters())
    assert abs(count - 1_503e6) <= 0.01 * 1_503e6
    assert model.config.head_dim == 112


def test_a_recipe_can_choose_every_saturation() -> None:
    for saturation in SATURATIONS:
        assert load_recipe("tiny", {"weak.saturation": saturation}).weak.saturation == saturation
    assert get_args(WeakRecipe.model_fields["saturation"].annotation) == SATURATIONS


def test_command_line_sets_any_field() -> None:
    recipe = load_recipe(
        "tiny", {"weak.soft_mask": "off", "weak.sources.0.batch_size": "7", "supervised.dims": "[32, 256]"}
    )
    assert recipe.weak.soft_mask == "off"
    assert recipe.weak.sources[0].batch_size == 7
    assert recipe.supervised.dims == [32, 256]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("weak.stepz", "3", r"weak\.stepz: unknown field"),
        ("weak.steps", "0", r"weak\.steps: .*greater than or equal to 1.*got 0"),
        ("weak.steps", "many", r"weak\.steps: .*got 'many'"),
        ("weak.soft_mask", "cubic", r"weak\.soft_mask: .*'linear'.*got 'cubic'"),
        ("weak.steps.more", "1", r"weak\.steps is a value"),
        ("weak.sources.9.path", "x", r"'9' is not an index into a list of 2"),
        ("weak.dims", "[512]", r"weak\.dims: 512 is not in 1\.\.256"),
        ("model.num_attention_heads", "3", "hidden_size 256 is not a multiple of 3 heads"),
        ("pretrain.max_length", "4096", "exceeds model.max_position_embeddings 512"),
        ("weak.temperature", "nan", "weak.temperature"),
    ],
)
def test_errors_name_the_field(field: str, value: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        load_recipe("tiny", {field: value})


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"one of: conan-1\.4b, tiny"):
        load_recipe("big")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    with pytest.raises(RecipeError, match=r"broken\.toml: not TOML"):
        load_recipe(str(broken))


def test_every_field_is_listed_with_its_default() -> None:
    lines = "\n".join(describe_fields())
    assert '--weak.soft_mask = "linear"' in lines
    assert "--supervised.sources.N.batch_size = 64" in lines
    assert "--evaluate.retrieval.path" in lines
