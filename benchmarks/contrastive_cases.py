"""InfoNCE on random embeddings of a shape, checked against the exact gradients before any time is taken.

Three products of 2 N M D FLOP (scores, gradients of queries and of candidates) are useful work, for all dims together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import contrastive_losses as losses
from benchmarks import timing
from benchmarks.contrastive_exact import exact_gradients
from benchmarks.runner import WrongResult, leaves_out, peak_of_quick

# Relative (Frobenius) error of the checked gradients; one wrong row of 64 gives about 0.12. In bfloat16 a score of 14,
# a positive's, is off by up to 0.03, and its weight by as much.
TOLERANCE, OUR_TOLERANCE = 0.05, 0.01
FLOAT32_TOLERANCE = 1e-4
CHECKED = 64  # queries, positives and hard negatives each whose gradients are compared
FLOAT64_PRODUCTS = 10**12  # beyond so many multiplications (N M times the sum of the dims) float32 is exact enough
MAX_SECONDS = 4.0  # forward and backward together
LATENT = 32  # the embeddings' effective number of dimensions
NAMES = ("queries", "positives", "negatives")


@dataclass(frozen=True)
class Shape:
    """N queries and positives, K hard negatives for each, which are shared: M = N (1 + K) candidates."""

    pairs: int
    negatives: int
    dim: int
    dims: tuple[int, ...]

    @property
    def candidates(self) -> int:
        return self.pairs * (1 + self.negatives)

    @property
    def flop(self) -> int:
        return 6 * self.pairs * self.candidates * self.dim

    def __str__(self) -> str:
        return f"N={self.pairs} K={self.negatives} D={self.dim} dims={len(self.dims)}"


@dataclass(frozen=True)
class Implementation:
    """What it holds at once, for the estimate: `squares` + `squares_per_dim` each N x M numbers, and `prefixes` times
    the normalised prefixes of all dims."""

    name: str
    build: losses.Build
    squares: int = 0
    squares_per_dim: int = 0
    prefixes: int = 0
    tolerance: float = TOLERANCE
    checked: bool = True

    def bytes_needed(self, shape: Shape, element_size: int) -> int:
        squares = self.squares + self.squares_per_dim * len(shape.dims)
        texts = shape.pairs + shape.candidates
        features = texts * (4 * shape.dim + self.prefixes * sum(shape.dims))
        return element_size * (squares * shape.pairs * shape.candidates + features)


FLOOR = Implementation("three_products", losses.three_products, checked=False)  # takes what is free
OURS = (
    Implementation("ours", losses.ours, tolerance=OUR_TOLERANCE),
    Implementation("ours_once_per_dim", losses.ours_once_per_dim, prefixes=3, tolerance=OUR_TOLERANCE),
)
IMPLEMENTATIONS = (
    FLOOR,
    *OURS,
    Implementation("eager", losses.eager, squares=3, squares_per_dim=1, prefixes=1),
    Implementation("eager_compiled", losses.eager_compiled, squares=2, squares_per_dim=1, prefixes=1),
    Implementation("st_mnrl", losses.multiple_negatives, squares=3, squares_per_dim=1, prefixes=1),
    Implementation("st_cached_mnrl", losses.cached_multiple_negatives, prefixes=1),
)


@dataclass(frozen=True)
class Prepared:
    """An implementation whose results are right.

    peak_bytes: of forward and backward, above the inputs; None on a CPU. errors: of each gradient.
    """

    step: timing.Step
    peak_bytes: int | None
    errors: dict[str, float]


class Case:
    """Embeddings of a shape, bfloat16 on a GPU and float32 on a CPU, and the exact gradients of some.

    They lie near a space of few dimensions, as real ones do, so that scores spread and the negatives that are close
    have a say in the gradients; a positive's cosine is about 0.64, a hard negative's 0.4.
    """

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self.shape, self.device = shape, device
        self.dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        self.inputs = [x.requires_grad_() for x in self._embeddings()]
        self._checked = torch.linspace(0, shape.pairs - 1, min(CHECKED, shape.pairs)).round().long().to(device)
        self._expected: list[Tensor] | None = None

    def _embeddings(self) -> Iterator[Tensor]:
        generator = torch.Generator(self.device).manual_seed(0)

        def noise(*size: int) -> Tensor:
            return torch.randn(*size, device=self.device, dtype=self.dtype, generator=generator)

        pairs, count, dim = self.shape.pairs, self.shape.negatives, self.shape.dim
        basis = noise(LATENT, dim) / LATENT**0.5
        latent = noise(pairs, LATENT)
        yield latent @ basis + 0.5 * noise(pairs, dim)
        yield (0.8 * latent + 0.6 * noise(pairs, LATENT)) @ basis + 0.5 * noise(pairs, dim)
        if count:
            hard = 0.5 * latent[:, None] + 0.75**0.5 * noise(pairs, count, LATENT)
            yield hard @ basis + 0.5 * noise(pairs, count, dim)

    def prepare(self, implementation: Implementation) -> Prepared:
        """Raises NotRun, or WrongResult."""
        needed = implementation.bytes_needed(self.shape, self.dtype.itemsize)
        with leaves_out(self.device, needed, ours=implementation in OURS):
            expected = self._expectation() if implementation.checked else []
            base = timing.allocated_bytes(self.device)
            work = implementation.build(self.inputs, self.shape.dims)
            poison = [torch.full_like(x, torch.nan) for x in self.inputs]
            del poison  # a GPU's allocator hands it out again: what an implementation never writes shall not look right
            work.step()
            errors = self._errors(implementation, work.gradients(), expected) if implementation.checked else {}
            peak = peak_of_quick(work.step, self.device, MAX_SECONDS)
            return Prepared(work.step, None if peak is None else peak - base, errors)

    def _errors(
        self, implementation: Implementation, results: Sequence[Tensor], expected: Sequence[Tensor]
    ) -> dict[str, float]:
        tolerance = implementation.tolerance if self.dtype == torch.bfloat16 else FLOAT32_TOLERANCE
        errors: dict[str, float] = {}
        for name, result, want in zip(NAMES, results, expected, strict=False):
            if not result.isfinite().all():
                raise WrongResult(f"the gradient of the {name} is not finite")
            errors[name] = float((self._some(result).to(want.dtype) - want).norm() / want.norm())
            if not errors[name] <= tolerance:
                raise WrongResult(f"the gradient of the {name} is off by {errors[name]:.2g} of its norm")
        if len(errors) != len(self.inputs):
            raise WrongResult(f"gave {len(errors)} gradients for {len(self.inputs)} inputs")
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
            queries, *others = (x.detach() for x in self.inputs)
            rows, columns = exact_gradients(
                queries,
                losses.all_candidates(*others),
                shape.dims,
                losses.TEMPERATURE,
                checked,
                torch.cat(numbers),
                dtype,
            )
            self._expected = [rows, *columns.split(len(checked))]
        return self._expected
