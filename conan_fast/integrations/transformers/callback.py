"""The soft mask in transformers' `Trainer` and in `SentenceTransformerTrainer`."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from conan_fast.attention.soft_mask import SoftMaskSchedule

from .alpha import soft_mask_alpha
from .saved_model import mark_bidirectional


class SoftMaskCallback(TrainerCallback):
    """Raises the model's alpha from 0 (causal) to 1 (bidirectional) while it trains (eq. 4).

    alpha follows the trainer's count of optimizer steps, so a resumed run goes on with the same alpha. Every log gets
    "soft_mask_alpha" (in `trainer.state.log_history`, and in the callbacks after this one; for TensorBoard and the
    like put this one first: `trainer.callback_handler.callbacks.insert(0, SoftMaskCallback())`).

    Evaluation and `encode` during training use alpha of that moment. Whatever is saved, checkpoints included, says
    `is_causal: false`: loaded again the model is bidirectional, alpha = 1.

    Args:
        curve: "linear" (the paper's best), "accelerating" or "decelerating".
        share: alpha reaches 1 at this share of the run's optimizer steps, in (0, 1]; 1 means at the last step.
        total_steps: the same as a number of steps, in place of `share`.

    Raises:
        ValueError: for these arguments; and, when training starts, for a model that does not use
            attn_implementation="conan_soft_mask".
    """

    def __init__(self, curve: str = "linear", *, share: float = 1.0, total_steps: int | None = None) -> None:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share must be in (0, 1], got {share}")
        if total_steps is not None and share != 1.0:
            raise ValueError(f"share and total_steps say the same thing, got {share} and {total_steps}: pass one")
        self.share, self.total_steps = share, total_steps
        self.schedule = SoftMaskSchedule(total_steps or 0, curve)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model = kwargs["model"]
        if self.total_steps is None:
            steps = max(0, round(self.share * state.max_steps) - 1)
            self.schedule = SoftMaskSchedule(steps, self.schedule.curve)
        soft_mask_alpha(model, self.schedule(state.global_step))
        mark_bidirectional(model)
        _warn_of_adapters(model)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        soft_mask_alpha(kwargs["model"], self.schedule(state.global_step))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # The log comes after the step was counted.
        alpha = {"soft_mask_alpha": self.schedule(max(0, state.global_step - 1))}
        kwargs["logs"].update(alpha)
        if state.log_history:
            state.log_history[-1].update(alpha)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        last = self.schedule(max(0, state.global_step - 1))
        if last < 1.0:
            warnings.warn(
                f"the soft mask ended at alpha={last:.3g}, but a saved model runs at alpha=1; train to the schedule's "
                "end, or let it end earlier with SoftMaskCallback(share=...)",
                stacklevel=2,
            )
        soft_mask_alpha(kwargs["model"], 1.0)


def _warn_of_adapters(model: nn.Module) -> None:
    if any(hasattr(x, "merge_and_unload") for x in model.modules()):
        warnings.warn(
            "a saved PEFT adapter does not contain the base model's config, which says that the model is causal; save "
            "model.merge_and_unload() to get a model that loads as bidirectional",
            stacklevel=2,
        )
