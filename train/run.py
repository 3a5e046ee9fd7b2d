"""A run: its folder, device and data, and how each stage starts and ends.

runs/NAME/
  recipe.json                      the recipe used; --recipe runs/NAME loads it
  tokenizer/                       files of the tokenizer
  pretrain/  sft/  weak/  supervised/
    metrics.jsonl  speed.jsonl  tensorboard/  checkpoints/
    model/                         the finished stage, for AutoModel (and, from weak on, SentenceTransformer)
  mine/pools.safetensors           hard negatives
  scores.json  summary.png
"""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from train.data.load import load_rows
from train.data.rows import Row
from train.files import atomic_folder, write_json
from train.model import build_model, load_model, save_model
from train.recipe import RECIPE_FILE, Recipe, RecipeError, Source
from train.tokenizer import load_tokenizer

# Stage -> the stage whose model it starts from, and whether its finished model is causal.
STAGES: dict[str, tuple[str | None, bool]] = {
    "pretrain": (None, True),
    "sft": ("pretrain", True),
    "weak": ("sft", False),
    "supervised": ("weak", False),
}


class Run:
    """The run of a recipe.

    Args:
        resume: continue from the newest checkpoint of a stage, and keep finished stages.
        overwrite: delete the earlier results of a stage and start it again.
    """

    def __init__(self, recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> None:
        self.recipe, self.resume, self.overwrite = recipe, resume, overwrite
        self.folder = recipe.folder
        self.device = _device(recipe.device)
        random.seed(recipe.seed)
        np.random.seed(recipe.seed)
        torch.manual_seed(recipe.seed)

    def begin(self, command: str, result: str) -> bool:
        """Prepare the folder of a command (a stage, "tokenizer", "mine").

        Returns:
            False if it has the file or folder `result` already and the run is resumed.

        Raises:
            RecipeError: the folder is not empty, and neither resume nor overwrite is set.
        """
        folder = self.folder / command
        if self.resume and (folder / result).exists():
            return False
        if not self.resume and folder.exists() and any(folder.iterdir()):
            if not self.overwrite:
                raise RecipeError(
                    f"{folder} contains an earlier run; add --resume to continue it or --overwrite to start again"
                )
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        used = self.recipe.model_copy(update={"output": str(self.folder)})
        write_json(self.folder / RECIPE_FILE, used.model_dump(mode="json"))
        return True

    def rows(self, source: Source, kind: type[Row]) -> list[Row]:
        """All rows of a source."""
        return load_rows(source.path, kind, split=source.split, columns=source.columns)

    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.folder / "tokenizer")

    def untrained_model(self) -> LlamaForCausalLM:
        """The model at the start of pretraining: random weights, determined by the seed."""
        torch.manual_seed(self.recipe.seed)
        model = build_model(self.recipe.model, self.tokenizer().get_vocab_size())
        return self._on_device(model)

    def start_model(self, stage: str) -> LlamaForCausalLM:
        """The model that a stage starts from.

        Raises:
            FileNotFoundError: the previous stage is not finished.
        """
        before = STAGES[stage][0]
        return self.untrained_model() if before is None else self.finished_model(before)

    def finished_model(self, stage: str) -> LlamaForCausalLM:
        folder = self.folder / stage / "model"
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: not found; first run: python -m train {stage}")
        return self._on_device(load_model(folder))

    def _on_device(self, model: LlamaForCausalLM) -> LlamaForCausalLM:
        torch.nn.Module.to(model, self.device)  # in place; the override in transformers has wrong type hints
        return model

    def save_finished(self, stage: str, model: LlamaForCausalLM) -> Path:
        """Write the stage's model and tokenizer in the format of AutoModel and SentenceTransformer."""
        target = self.folder / stage / "model"
        is_causal = STAGES[stage][1]
        with atomic_folder(target) as partial:
            save_model(model, partial, is_causal=is_causal)
            for file in (self.folder / "tokenizer").iterdir():
                shutil.copy(file, partial)
            if not is_causal:
                from conan_fast.integrations.sentence_transformers import write_module_files

                write_module_files(partial, model.config.hidden_size, self.recipe.evaluate.max_length)
        return target


def require_sources(stage: str, sources: Sequence[Source]) -> None:
    """Raises RecipeError if a stage has no data."""
    if not sources:
        raise RecipeError(
            f"{stage}.sources: is empty; add at least one to the recipe, e.g.\n"
            f'  [[{stage}.sources]]\n  path = "my_data.jsonl"'
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RecipeError(f'device: unknown device {name!r}; expected "auto", "cpu", "cuda", "cuda:1", ...') from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError(f"device: got {name!r}, but torch {torch.__version__} finds no GPU")
    return device
