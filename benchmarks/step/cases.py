"""One optimiser step of the embedding stages, from texts to changed weights: cases, and the check by the definition."""

import traceback
from functools import partial
from typing import Any

import torch

from benchmarks import timing
from benchmarks.attention.cases import our_backend
from benchmarks.step import definition
from benchmarks.step.breakdown import breakdown
from benchmarks.step.implementation import Running, StepImplementation
from benchmarks.step.models import Parameters
from benchmarks.step.task import Case, Task, lengths
from benchmarks.suite import Checked, NotRun, relative_error

PARTS = ("step",)
# Relative errors, of a gradient by its (Frobenius) norm. In bfloat16 on a CPU right ones were off by up to 0.014 (loss)
# and 0.038 (gradients, the 1.4B model); with alpha off by 0.1 gradients were off by 0.1 and more.
LOSS_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.08}


def cases(device_type: str) -> list[Case]:
    """The paper's model and batch first."""
    if device_type == "cpu":
        return [
            Case("weak", "tiny", 16, 1024),
            Case("supervised", "tiny", 8, 1152),
            Case("weak", "tiny", 16, 256, micro_batch_tokens=64),  # gradient caching
            Case("weak", "tiny", 8, 256),
            Case("supervised", "tiny", 4, 288),
        ]
    return [
        Case("weak", "conan-1.4b", 64, 16_384),
        Case("supervised", "conan-1.4b", 64, 16_384),
        Case("weak", "small", 4096, 65_536),
        Case("supervised", "small", 512, 65_536),
        Case("weak", "conan-1.4b", 512, 32_768),
        Case("weak", "medium", 256, 16_384),
        Case("supervised", "medium", 128, 32_768),
        Case("weak", "small", 256, 16_384),
        Case("supervised", "small", 64, 16_384),
        Case("weak", "conan-1.4b", 64, 4096),
        Case("weak", "small", 64, 65_536),  # long texts: 512 tokens on average
        Case("weak", "small", 64, 4096),
        Case("weak", "tiny", 64, 4096),
    ]


def on_request(_: str) -> list[Case]:
    return []


class Workload:
    """The texts of a case, and loss and gradients of a few of them by the definition."""

    def __init__(self, case: Case, device: torch.device, precision: str | None = None) -> None:
        """precision: in place of the recipe's, see train.recipe.Recipe."""
        self.task = Task.of(case, device, precision)
        self.checked = self.task.checked()
        self._expected = definition.by_definition(self.checked, sorted({self.task.alpha, 1.0}))
        self.facts: dict[str, Any] = {
            "dtype": str(self.task.dtype).removeprefix("torch."),
            "texts": case.texts,
            "longest_text": int(lengths(case).max()),
            "dims": case.dims,
            "alpha": self.task.alpha,
            "our_backend": our_backend(device),  # of attention, if the kernels support the head_dim
        }

    def check(self, implementation: StepImplementation) -> Checked:
        """Raises NotRun or WrongResult."""
        if reason := implementation.reason(self.task.case):
            raise NotRun(reason)
        base = timing.allocated_bytes(self.task.device)
        running = None
        try:
            running = implementation.build(self.task)
            alpha = self.task.alpha if implementation.alpha is None else implementation.alpha
            errors = self._errors(running, self._expected[alpha])
            running.step()  # makes the optimiser's state
            peak = timing.peak_above(base, running.step, self.task.device)
            step, facts = running.step, partial(self._facts_of, running)
            return Checked(lambda _: step, peak, errors, facts)
        except Exception as error:  # is kept as the reason, and must not keep a model alive
            traceback.clear_frames(error.__traceback__)
            del running
            raise

    def _errors(self, running: Running, expected: definition.Result) -> dict[str, float]:
        loss = float(running.backward(self.checked))
        got = definition.gradients(running.llama, self.checked)
        running.optimizer.zero_grad(set_to_none=True)
        dtype, losses = self.task.dtype, torch.tensor([loss, expected.loss], dtype=torch.float64)
        errors = {"loss": relative_error("loss", losses[0], losses[1], LOSS_TOLERANCE[dtype])}
        for name, want in expected.gradients.items():
            errors[name] = relative_error(name, got[name], want, TOLERANCE[dtype])
        return errors

    def _facts_of(self, running: Running) -> dict[str, Any]:
        """The breakdown is from an extra step. If it fails the row has the reason: the times are taken already."""
        facts: dict[str, Any] = {
            "tokens": int(lengths(self.task.case).sum()),
            "parameters": Parameters.of(self.task.recipe).total,
        }
        try:
            found = breakdown(running, self.task.device)
        except Exception as error:
            return facts | {"breakdown": None, "breakdown_reason": f"{type(error).__name__}: {error}"[:200]}
        return facts | {"breakdown": found.shares, "padded_tokens": found.positions}
