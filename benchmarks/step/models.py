"""The models that a step is measured on, by name: those of this file, and the recipes of train/recipes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from train.recipe import ModelRecipe, Recipe, SupervisedRecipe, TokenizerRecipe, load_recipe

SMALL = Recipe(
    name="small",
    tokenizer=TokenizerRecipe(vocab_size=32_768),
    model=ModelRecipe(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=4,
    ),
    supervised=SupervisedRecipe(dims=[128, 256, 384, 512, 640, 896, 1024]),
)
MEDIUM = Recipe(
    name="medium",
    tokenizer=TokenizerRecipe(vocab_size=65_536),
    model=ModelRecipe(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=4,
    ),
    supervised=SupervisedRecipe(dims=[256, 512, 768, 1024, 1536, 2048]),
)
OURS = {recipe.name: recipe for recipe in (SMALL, MEDIUM)}


@lru_cache
def recipe_of(name: str) -> Recipe:
    """Raises train.recipe.RecipeError for a name that is neither here nor in train/recipes."""
    return OURS.get(name) or load_recipe(name)


@dataclass(frozen=True)
class Parameters:
    """What the embedding stages train: no LM head, unless it is the embeddings."""

    matrices: int  # of the layers' products
    embeddings: int
    gains: int

    @staticmethod
    def of(recipe: Recipe) -> Parameters:
        model = recipe.model
        head_dim = model.hidden_size // model.num_attention_heads
        heads = 2 * model.num_attention_heads + 2 * model.num_key_value_heads  # q, out; k, v
        layer = model.hidden_size * (heads * head_dim + 3 * model.intermediate_size)
        return Parameters(
            matrices=model.num_hidden_layers * layer,
            embeddings=recipe.tokenizer.vocab_size * model.hidden_size,
            gains=(2 * model.num_hidden_layers + 1) * model.hidden_size,
        )

    @property
    def total(self) -> int:
        return self.matrices + self.embeddings + self.gains
