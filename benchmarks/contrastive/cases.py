"""InfoNCE on random embeddings of a shape, checked against the exact gradients before any time is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.contrastive.exact import exact_gradients
from benchmarks.contrastive.implementation import TEMPERATURE, ContrastiveImplementation, all_candidates
from benchmarks.contrastive.peers.ours import backend_of
from benchmarks.contrastive.shape import DTYPES, Shape
from benchmarks.peer import WrongResult

FLOAT32_TOLERANCE = 1e-4
CHECKED = 64  # queries, positives and hard negatives each whose gradients are compared
FLOAT64_PRODUCTS = 10**12  # beyond so many multiplications (N M times the sum of the dims) float32 is exact enough
LATENT = 32  # the embeddings' effective number of dimensions
NAMES = ("queries", "positives", "negatives")


@dataclass(frozen=True)
class Prepared:
    """An implementation whose results are right. steps: of the inputs that take turns. errors: of each gradient."""

    steps: list[timing.Step]
    peak_bytes: int | None
    errors: dict[str, float]

    def step(self, _: str) -> timing.Step:
        turns = cycle(self.steps)
        return lambda: next(turns)()

    def after(self) -> dict[str, Any]:
        return {}


class Case:
    """Embeddings of a shape, bfloat16 on a GPU and float32 on a CPU, and the exact gradients of some.

    They lie near a space of few dimensions, as real ones do, so that scores spread and the negatives that are close
    have a say in the gradients; a positive's cosine is about 0.64, a hard negative's 0.4.
    """

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self.shape, self.device, self.dtype = shape, device, dtype or DTYPES[device.type]
        first = self._embeddings(0)
        size = sum(x.nbytes for x in first)
        self.inputs = [first, *(self._embeddings(seed) for seed in range(1, timing.rotation(size)))]
        backend, reason = backend_of(first, shape.dims)
        self.facts: dict[str, Any] = {
            "candidates": shape.candidates,
            "dtype": str(self.dtype).removeprefix("torch."),
            "our_backend": backend,
            "kernels_not_used": reason,
        }
        self._checked = torch.linspace(0, shape.pairs - 1, min(CHECKED, shape.pairs)).round().long().to(device)
        self._expected: list[Tensor] | None = None

    def _embeddings(self, seed: int) -> list[Tensor]:
        generator = torch.Generator(self.device).manual_seed(seed)

        def noise(*size: int) -> Tensor:
            return torch.randn(*size, device=self.device, dtype=self.dtype, generator=generator)

        pairs, count, dim = self.shape.pairs, self.shape.negatives, self.shape.dim
        basis = noise(LATENT, dim) / LATENT**0.5
        latent = noise(pairs, LATENT)
        made = [latent @ basis + 0.5 * noise(pairs, dim)]
        made.append((0.8 * latent + 0.6 * noise(pairs, LATENT)) @ basis + 0.5 * noise(pairs, dim))
        if count:
            hard = 0.5 * latent[:, None] + 0.75**0.5 * noise(pairs, count, LATENT)
            made.append(hard @ basis + 0.5 * noise(pairs, count, dim))
        return [x.requires_grad_() for x in made]

    def prepare(self, implementation: ContrastiveImplementation) -> Prepared:
        """Raises NotRun, or WrongResult."""
        expected = self._expectation() if implementation.checked else []
        base = timing.allocated_bytes(self.device)
        first = implementation.build(self.inputs[0], self.shape.dims)
        poison = [torch.full_like(x, torch.nan) for x in self.inputs[0]]
        del poison  # a GPU's allocator hands it out again: what an implementation never writes shall not look right
        first.step()
        errors = self._errors(implementation, first.gradients(), expected) if implementation.checked else {}
        peak = timing.peak_above(base, first.step, self.device)
        others = [implementation.build(inputs, self.shape.dims) for inputs in self.inputs[1:]]
        return Prepared([first.step, *(work.step for work in others)], peak, errors)

    def _errors(
        self, implementation: ContrastiveImplementation, results: Sequence[Tensor], expected: Sequence[Tensor]
    ) -> dict[str, float]:
        tolerance = implementation.tolerance if self.dtype == torch.bfloat16 else FLOAT32_TOLERANCE
        errors: dict[str, float] = {}
        for name, result, want in zip(NAMES, results, expected, strict=False):
            if not result.isfinite().all():
                raise WrongResult(f"the gradient of the {name} is not finite")
            errors[name] = float((self._some(result).to(want.dtype) - want).norm() / want.norm())
            if not errors[name] <= tolerance:
                raise WrongResult(f"the gradient of the {name} is off by {errors[name]:.2g} of its norm")
        if len(errors) != len(self.inputs[0]):
            raise WrongResult(f"gave {len(errors)} gradients for {len(self.inputs[0])} inputs")
        return errors

    def _some(self, x: Tensor) -> Tensor:
        """The checked rows; of hard negatives one of each checked query, in turn."""
        if x.ndim == 2:
            return x[self._checked]
        return x[self._checked, torch.arange(len(self._checked), device=self.device) % x.shape[1]]

    def _expectation(self) -> list[Tensor]:
        """The gradients of the checked rows of queries, positives and, where there are some, negatives."""
        if self._expected is None:
            shape, checked = self.shape, self._checked
            work = shape.pairs * shape.candidates * sum(shape.dims)
            dtype = torch.float64 if work <= FLOAT64_PRODUCTS else torch.float32
            numbers = [checked]
            if shape.negatives:
                places = torch.arange(len(checked), device=self.device) % shape.negatives
                numbers.append(shape.pairs + checked * shape.negatives + places)
            queries, *others = (x.detach() for x in self.inputs[0])
            rows, columns = exact_gradients(
                queries,
                all_candidates(*others),
                shape.dims,
                TEMPERATURE,
                checked,
                torch.cat(numbers),
                dtype,
            )
            self._expected = [rows, *columns.split(len(checked))]
        return self._expected
