"""InfoNCE, loss and gradients: cases, random embeddings, and the check against exact gradients.

N pairs, K hard negatives for each, which all queries share, and Matryoshka dims up to D.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import timing
from benchmarks.roofline import Work, info_nce_work
from benchmarks.suite import Checked, Implementation, WrongResult, poison_free_memory, relative_error
from conan_fast import info_nce

PARTS = ("both",)
TEMPERATURE = 0.05
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}
PAIRS = {"cuda": (1024, 4096, 16384, 65536), "cpu": (1024, 256)}
DIMS = {"cuda": (1024, 3584), "cpu": (1024,)}
NEGATIVES = {"cuda": (0, 7), "cpu": (0, 3)}
PAPER = {3584: (256, 512, 1024, 1536, 2048, 3072, 3584)}
EIGHTHS = (1, 2, 3, 4, 5, 7, 8)
# Relative (Frobenius) error of the checked gradients; one wrong row of 64 gives about 0.12. In bfloat16 a score of 14,
# a positive's, is off by up to 0.03, and its weight by as much.
TOLERANCE = 0.05
FLOAT32_TOLERANCE = 1e-4
CHECKED = 64  # queries, positives and hard negatives each whose gradients are compared
FLOAT64_PRODUCTS = 10**12  # beyond so many multiplications (N M times the sum of the dims) float32 is exact enough
LATENT = 32  # the embeddings' effective number of dimensions
NAMES = ("queries", "positives", "negatives")


@dataclass(frozen=True)
class Case:
    """N queries and positives, K hard negatives for each, which are shared: M = N (1 + K) candidates."""

    pairs: int
    negatives: int
    dim: int
    dims: tuple[int, ...]
    element_size: int = 2

    @property
    def candidates(self) -> int:
        return self.pairs * (1 + self.negatives)

    def work(self, _: str = "both") -> Work:
        return info_nce_work(pairs=self.pairs, candidates=self.candidates, dim=self.dim, element_size=self.element_size)


def matryoshka(dim: int) -> tuple[int, ...]:
    """The paper's seven dims for its 3,584, else seven eighths."""
    return PAPER.get(dim) or tuple(sorted({max(1, dim * part // 8) for part in EIGHTHS}))


def cases(device_type: str) -> list[Case]:
    """N = 16,384 (CPU: 1,024), the largest D and seven dims first; then what differs from that in fewer respects."""
    dims, size = DIMS[device_type], DTYPES[device_type].itemsize
    first = {"cuda": 16384, "cpu": 1024}[device_type]
    found = []
    for pairs, dim, negatives in product(PAIRS[device_type], dims, NEGATIVES[device_type]):
        for prefixes in dict.fromkeys((matryoshka(dim), (dim,))):
            distance = abs(math.log(pairs / first, 4)) + (dim != max(dims)) + (len(prefixes) == 1)
            found.append((distance, Case(pairs, negatives, dim, prefixes, size)))
    return [case for _, case in sorted(found, key=lambda pair: (pair[0], pair[1].negatives, -pair[1].pairs))]


def on_request(device_type: str) -> list[Case]:
    """A batch of all-MiniLM-L6-v2 (D = 384); on a CPU also one of the paper's kind, a minute for one call of ours."""
    size = DTYPES[device_type].itemsize
    small = [Case(2048, 0, 384, dims, size) for dims in ((64, 128, 256, 384), (384,))]
    return [*small, Case(8192, 7, 1024, matryoshka(1024), size)] if device_type == "cpu" else small


Inputs = Sequence[Tensor]  # queries [N, D], positives [N, D] and, with hard negatives, negatives [N, K, D]
Loss = Callable[..., Tensor]  # of the inputs


@dataclass(frozen=True)
class GradientStep:
    """run: forward and backward. gradients: those of the inputs that the last run left."""

    run: timing.Step
    gradients: Callable[[], list[Tensor]]


CrossEntropy = Callable[[Tensor, Tensor, Tensor], Tensor]  # queries [N, d], candidates [M, d], labels [N] -> mean
Build = Callable[[Inputs, Sequence[int]], GradientStep]  # of the inputs, which require gradients, and the dims


def by_autograd(inputs: Inputs, loss: Loss) -> GradientStep:
    kept: list[Tensor] = []

    def run() -> None:
        kept.clear()
        kept.extend(torch.autograd.grad(loss(*inputs), inputs))

    return GradientStep(run, lambda: kept)


def loss_per_dim(dims: Sequence[int], cross_entropy: CrossEntropy) -> Loss:
    def loss(queries: Tensor, *others: Tensor) -> Tensor:
        candidates, labels = all_candidates(*others), torch.arange(len(queries), device=queries.device)
        prefixes = ((normalize(x[:, :dim], dim=1) for x in (queries, candidates)) for dim in dims)
        return torch.stack([cross_entropy(q, c, labels) for q, c in prefixes]).sum()

    return loss


def per_dim(cross_entropy_of: Callable[[Inputs, Sequence[int]], CrossEntropy]) -> Build:
    return lambda inputs, dims: by_autograd(inputs, loss_per_dim(dims, cross_entropy_of(inputs, dims)))


@dataclass(frozen=True)
class InfoNCEImplementation(Implementation):
    """What it holds at once, for the estimate: `squares` + `squares_per_dim` for each dim, each N x M elements, and
    `prefixes` times the normalised prefixes of all dims."""

    build: Build
    squares: int = 0
    squares_per_dim: int = 0
    prefixes: int = 0
    tolerance: float = TOLERANCE
    checked: bool = True

    def bytes_needed(self, case: Case) -> int:
        squares = self.squares + self.squares_per_dim * len(case.dims)
        features = (case.pairs + case.candidates) * (4 * case.dim + self.prefixes * sum(case.dims))
        return case.element_size * (squares * case.pairs * case.candidates + features)


def all_candidates(positives: Tensor, *negatives: Tensor) -> Tensor:
    """[N (1 + K), D], the positives first."""
    return torch.cat([positives, *(x.flatten(0, 1) for x in negatives)])


def our_backend(inputs: Inputs, dims: Sequence[int]) -> tuple[str, str | None]:
    """("cuda", None), or ("torch", why the kernels are not used); found by a call with two rows of the inputs."""
    if inputs[0].device.type == "cpu":
        return "torch", None
    try:
        info_nce(*(x.detach()[:2] for x in inputs), temperature=TEMPERATURE, dims=dims, backend="cuda")
    except (RuntimeError, TypeError, ValueError) as error:
        return "torch", str(error)
    return "cuda", None


class Workload:
    """Embeddings of a case, bfloat16 on a GPU and float32 on a CPU, and the exact gradients of some.

    They lie near a space of few dimensions, as real ones do, so that scores spread and close negatives matter in the
    gradients; a positive's cosine is about 0.64, a hard negative's 0.4.
    """

    def __init__(self, case: Case, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self.case, self.device, self.dtype = case, device, dtype or DTYPES[device.type]
        self.inputs = timing.rotation(self._embeddings)
        backend, reason = our_backend(self.inputs[0], case.dims)
        self.facts: dict[str, Any] = {"candidates": case.candidates, "dtype": str(self.dtype).removeprefix("torch.")}
        self.facts |= {"our_backend": backend, "kernels_not_used": reason}
        self._checked = torch.linspace(0, case.pairs - 1, min(CHECKED, case.pairs)).round().long().to(device)
        # Of hard negatives one of each checked query, in turn.
        self._places = torch.arange(len(self._checked), device=device) % max(1, case.negatives)
        self._expected: list[Tensor] | None = None

    def _embeddings(self, seed: int) -> list[Tensor]:
        generator = torch.Generator(self.device).manual_seed(seed)

        def noise(*size: int) -> Tensor:
            return torch.randn(*size, device=self.device, dtype=self.dtype, generator=generator)

        pairs, count, dim = self.case.pairs, self.case.negatives, self.case.dim
        basis = noise(LATENT, dim) / LATENT**0.5
        latent = noise(pairs, LATENT)
        made = [latent @ basis + 0.5 * noise(pairs, dim)]
        made.append((0.8 * latent + 0.6 * noise(pairs, LATENT)) @ basis + 0.5 * noise(pairs, dim))
        if count:
            hard = 0.5 * latent[:, None] + 0.75**0.5 * noise(pairs, count, LATENT)
            made.append(hard @ basis + 0.5 * noise(pairs, count, dim))
        return [x.requires_grad_() for x in made]

    def check(self, implementation: InfoNCEImplementation) -> Checked:
        """Raises NotRun or WrongResult."""
        expected = self._expectation() if implementation.checked else []
        base = timing.allocated_bytes(self.device)
        first = implementation.build(self.inputs[0], self.case.dims)
        poison_free_memory(self.inputs[0])
        first.run()
        errors = self._errors(implementation, first.gradients(), expected) if implementation.checked else {}
        peak = timing.peak_above(base, first.run, self.device)
        others = [implementation.build(inputs, self.case.dims) for inputs in self.inputs[1:]]
        turns = cycle([first.run, *(step.run for step in others)])
        return Checked(lambda _: lambda: next(turns)(), peak, errors)

    def _errors(
        self, implementation: InfoNCEImplementation, results: Sequence[Tensor], expected: Sequence[Tensor]
    ) -> dict[str, float]:
        tolerance = implementation.tolerance if self.dtype == torch.bfloat16 else FLOAT32_TOLERANCE
        errors: dict[str, float] = {}
        for name, result, want in zip(NAMES, results, expected, strict=False):
            if not result.isfinite().all():
                raise WrongResult(f"the gradient of the {name} is not finite")
            got = result[self._checked] if result.ndim == 2 else result[self._checked, self._places]
            errors[name] = relative_error(f"the gradient of the {name}", got.to(want.dtype), want, tolerance)
        if len(errors) != len(self.inputs[0]):
            raise WrongResult(f"returned {len(errors)} gradients for {len(self.inputs[0])} inputs")
        return errors

    def _expectation(self) -> list[Tensor]:
        """The gradients of the checked rows of queries, positives and, if there are any, negatives."""
        if self._expected is None:
            case, columns = self.case, [self._checked]
            work = case.pairs * case.candidates * sum(case.dims)
            dtype = torch.float64 if work <= FLOAT64_PRODUCTS else torch.float32
            if case.negatives:
                columns.append(case.pairs + self._checked * case.negatives + self._places)
            queries, *others = (x.detach() for x in self.inputs[0])
            candidates = all_candidates(*others)
            rows, more = exact_gradients(queries, candidates, case.dims, self._checked, torch.cat(columns), dtype)
            self._expected = [rows, *more.split(len(self._checked))]
        return self._expected


def exact_gradients(
    queries: Tensor,
    candidates: Tensor,
    dims: Sequence[int],
    rows: Tensor,
    columns: Tensor,
    dtype: torch.dtype,
    block_bytes: int = 2**29,
) -> tuple[Tensor, Tensor]:
    """dL/dqueries[rows] and dL/dcandidates[columns] by the definition, dim by dim, computed in `dtype`.

    queries [N, D]; candidates [M, D], of which the first N are the queries' own positives. All logsumexps are needed
    for a candidate's gradient, so every score is computed, some rows at a time.
    """
    count, size = queries.shape
    grad_rows, grad_columns = (queries.new_zeros(len(x), size, dtype=dtype) for x in (rows, columns))
    own = torch.arange(count, device=queries.device)
    step = max(1, block_bytes // (dtype.itemsize * len(candidates)))
    for dim in dims:
        q, c = (normalize(x[:, :dim].to(dtype), dim=1) for x in (queries, candidates))
        lse = torch.cat([(part @ c.T).div_(TEMPERATURE).logsumexp(1) for part in q.split(step)])
        for some, part in zip(rows.split(step), grad_rows.split(step), strict=True):
            weights = ((q[some] @ c.T).div_(TEMPERATURE) - lse[some, None]).exp_()
            weights[own[: len(some)], some] -= 1
            part[:, :dim] += _through_norm(weights @ c, q[some], queries[some, :dim])
        weights = ((q @ c[columns].T).div_(TEMPERATURE) - lse[:, None]).exp_()
        weights -= (own[:, None] == columns).to(dtype)
        grad_columns[:, :dim] += _through_norm(weights.T @ q, c[columns], candidates[columns, :dim])
    return grad_rows / (count * TEMPERATURE), grad_columns / (count * TEMPERATURE)


def _through_norm(grad: Tensor, unit: Tensor, raw: Tensor) -> Tensor:
    """The gradient of raw, given that of unit = raw / |raw|."""
    return (grad - unit * (grad * unit).sum(1, keepdim=True)) / raw.to(grad.dtype).norm(dim=1, keepdim=True)
