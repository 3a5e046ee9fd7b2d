"""Training steps on random texts of a shape, checked against the definition before any time is taken."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import timing
from benchmarks.attention.peers import ours
from benchmarks.peer import NotRun, WrongResult
from benchmarks.step import exact
from benchmarks.step.breakdown import breakdown
from benchmarks.step.implementation import Running, StepImplementation
from benchmarks.step.models import Parameters
from benchmarks.step.shape import Shape, lengths
from benchmarks.step.task import Task

# Relative errors, of a gradient by its (Frobenius) norm. In bfloat16 on a CPU right ones were off by up to 0.014 (loss)
# and 0.038 (gradients, the 1.4B model); with alpha off by 0.1 gradients were off by 0.1 and more.
LOSS_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.08}


@dataclass(frozen=True)
class Prepared:
    """An implementation whose loss and gradients are right."""

    task: Task
    running: Running
    peak_bytes: int | None
    errors: dict[str, float]

    def step(self, _: str) -> timing.Step:
        return self.running.step

    def after(self) -> dict[str, Any]:
        """The breakdown is from extra steps; if these fail it says why, for the times are taken already."""
        facts: dict[str, Any] = {
            "tokens": int(lengths(self.task.shape).sum()),
            "parameters": Parameters.of(self.task.recipe).total,
        }
        try:
            found = breakdown(self.running, self.task.device)
        except Exception as error:
            return facts | {"breakdown": None, "breakdown_reason": f"{type(error).__name__}: {error}"[:200]}
        return facts | {"breakdown": found.shares, "padded_tokens": found.positions}


class Case:
    """The texts of a shape, and what the definition makes of a few of them."""

    def __init__(self, shape: Shape, device: torch.device, precision: str | None = None) -> None:
        """precision: in place of the recipe's, see train.recipe.Recipe."""
        self.task = Task.of(shape, device, precision)
        self.checked = self.task.checked()
        self._expected = exact.by_definition(self.checked, sorted({self.task.alpha, 1.0}))
        self.dtype = torch.bfloat16 if self.task.bfloat16 else torch.float32
        self.facts: dict[str, Any] = {
            "dtype": str(self.dtype).removeprefix("torch."),
            "texts": shape.texts,
            "longest_text": int(lengths(shape).max()),
            "dims": shape.dims,
            "alpha": self.task.alpha,
            "our_backend": ours.backend(device),  # of attention, if the head_dim is one of the kernels'
        }

    def prepare(self, implementation: StepImplementation) -> Prepared:
        """Raises NotRun, or WrongResult."""
        if reason := implementation.reason(self.task.shape):
            raise NotRun(reason)
        base = timing.allocated_bytes(self.task.device)
        running = None
        try:
            running = implementation.build(self.task)
            alpha = self.task.alpha if implementation.alpha is None else implementation.alpha
            errors = self._errors(running, self._expected[alpha])
            running.step()  # makes the optimiser's state
            return Prepared(self.task, running, timing.peak_above(base, running.step, self.task.device), errors)
        except Exception as error:  # is kept as the reason, and shall not keep a model
            traceback.clear_frames(error.__traceback__)
            del running
            raise

    def _errors(self, running: Running, expected: exact.Result) -> dict[str, float]:
        loss = float(running.backward(self.checked))
        got = exact.gradients(running.llama, self.checked)
        running.optimizer.zero_grad(set_to_none=True)
        errors = {"loss": abs(loss - expected.loss) / abs(expected.loss)}
        for name, want in expected.gradients.items():
            errors[name] = float((got[name] - want).norm() / want.norm())
        for name, error in errors.items():
            tolerance = (LOSS_TOLERANCE if name == "loss" else TOLERANCE)[self.dtype]
            if not error <= tolerance:  # NaN too
                raise WrongResult(f"{name} is off by {error:.2g} of its norm")
        return errors
