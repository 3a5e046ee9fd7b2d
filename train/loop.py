"""The training loop of all stages. A stage computes the gradients of a step; the loop does the rest."""

import contextlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from train.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint, save_checkpoint
from train.interrupt import StoppedByUser, StopRequest
from train.metrics import Metrics, Values
from train.recipe import StageRecipe
from train.sampling import MixtureSampler, SourceSampler

R = TypeVar("R", bound=StageRecipe)


@dataclass(frozen=True)
class StageContext:
    """What a stage gets from its run, next to its recipe and data."""

    tokenizer: Tokenizer
    seed: int
    device: torch.device
    precision: str


class Stage(ABC, Generic[R]):
    """One training stage."""

    name: str
    recipe: R
    sampler: MixtureSampler | SourceSampler

    @abstractmethod
    def backward(self, model: LlamaForCausalLM, step: int) -> tuple[Values, int]:
        """Sample a batch and add its gradients to the parameters.

        Args:
            step: number of optimizer steps already done.

        Returns:
            The values to log (at least "loss") and the number of tokens.
        """

    def state(self) -> dict[str, Any]:
        """Counters to save in a checkpoint (JSON)."""
        return self.sampler.state()

    def tensors(self) -> dict[str, Tensor]:
        """Tensors to save in a checkpoint."""
        return {}

    def load_state(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.sampler.load_state(state)


def learning_rate(recipe: StageRecipe, step: int) -> float:
    """The learning rate of a step: linear warm-up from 0, then decay to min_rate times the peak."""
    warmup = max(1, round(recipe.warmup * recipe.steps))
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, recipe.steps - warmup)
    decayed = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[recipe.decay]
    return recipe.learning_rate * (recipe.min_rate + (1 - recipe.min_rate) * decayed)


def make_optimizer(model: LlamaForCausalLM, recipe: StageRecipe) -> torch.optim.AdamW:
    """AdamW, without weight decay on vectors (the gains of norms)."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)


def run_stage(stage: Stage[Any], model: LlamaForCausalLM, folder: Path, *, resume: bool) -> None:
    """Train `model` in place for all steps of the stage; write checkpoints and metrics to `folder`.

    Raises:
        StoppedByUser: Ctrl-C or SIGTERM, after saving a checkpoint.
        FloatingPointError: a gradient is not finite (the last checkpoint precedes it).
        ValueError: the checkpoint to resume from was written with another recipe.
    """
    recipe = stage.recipe
    optimizer = make_optimizer(model, recipe)
    checkpoints = folder / "checkpoints"
    done, pending = 0, []
    newest = newest_checkpoint(checkpoints) if resume else None
    if newest is not None:
        loaded = load_checkpoint(newest, model, optimizer)
        _require_same_recipe(loaded.state["recipe"], recipe, newest)
        stage.load_state(loaded.state["stage"], loaded.tensors)
        done, pending = loaded.step, loaded.state["pending_metrics"]

    with (
        Metrics(folder, stage.name, total_steps=recipe.steps, done_steps=done, log_every=recipe.log_every) as metrics,
        StopRequest() as stop,
    ):
        metrics.load_state(pending)

        def save(step: int) -> None:
            state = {
                "recipe": recipe.model_dump(mode="json"),
                "stage": stage.state(),
                "pending_metrics": metrics.state(),
            }
            save_checkpoint(checkpoints, Checkpoint(step, state, stage.tensors()), model, optimizer)

        for step in range(done, recipe.steps):
            values, tokens = train_step(stage, model, optimizer, step)
            metrics.add(step + 1, values, tokens=tokens)
            if stop.requested:
                save(step + 1)
                raise StoppedByUser(f"stopped after step {step + 1} of {recipe.steps} of {stage.name}")
            if _is_checkpoint_step(recipe, step + 1):
                save(step + 1)


def train_step(
    stage: Stage[Any], model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, step: int
) -> tuple[Values, int]:
    """One optimizer step. Returns the values to log and the number of tokens."""
    rate = learning_rate(stage.recipe, step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    values, tokens = stage.backward(model, step)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), stage.recipe.max_grad_norm)
    # A NaN must not reach a checkpoint. Reading the norm from a GPU waits for the step, so there it is checked only
    # every log_every steps and before each checkpoint: once in the parameters, a NaN stays in the gradients.
    checked = step % stage.recipe.log_every == 0 or _is_checkpoint_step(stage.recipe, step + 1)
    if (norm.device.type == "cpu" or checked) and not math.isfinite(float(norm)):
        raise FloatingPointError(
            f"{stage.name}: the gradient of step {step + 1} is {float(norm)} (loss {float(values['loss'])}); "
            "lower the learning rate, or check the data of this step"
        )
    optimizer.step()
    return {**values, "learning_rate": rate, "grad_norm": norm}, tokens


def _is_checkpoint_step(recipe: StageRecipe, done: int) -> bool:
    return done % recipe.checkpoint_every == 0 or done == recipe.steps


def _require_same_recipe(saved: dict[str, Any], recipe: StageRecipe, path: Path) -> None:
    now = recipe.model_dump(mode="json")
    changed = sorted(key for key in saved.keys() | now.keys() if saved.get(key) != now.get(key))
    if changed:
        raise ValueError(
            f"{path}: was written with other values of {', '.join(changed)}; "
            "resume with the original recipe, or start again with --overwrite"
        )


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """bf16 autocast if precision is "bf16", or "auto" and the GPU supports it; otherwise a no-op."""
    if precision == "bf16" or (precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
