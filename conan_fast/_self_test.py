"""Small problems on which an operator is compared with its plain definition (`reference.py`) in float64.

Sizes are such that the kernels take several tiles, the last ones not full. No random generator but those made here is
drawn from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Largest relative error of a row. In the CPU emulation the kernels' largest are 0.0083, 0.0015 and 0.0000015.
TOLERANCES = {torch.bfloat16: 0.03, torch.float16: 0.004, torch.float32: 0.00001}
TF32_TOLERANCE = 0.004  # torch may be set to compute float32 in TF32 on a GPU
EMBEDDING_SIZE = 96


class Case(NamedTuple):
    """What is tested."""

    operator: str  # a key of PROBLEMS
    backend: str
    device: torch.device
    dtype: torch.dtype
    head_dim: int | None = None  # of attention

    def __str__(self) -> str:
        head_dim = "" if self.head_dim is None else f", head_dim {self.head_dim}"
        return f"{self.operator} ({str(self.dtype).removeprefix('torch.')}{head_dim})"


class Problem(NamedTuple):
    name: str
    function: str  # of conan_fast, and of `reference`
    inputs: dict[str, Tensor]  # arguments that get gradients
    options: dict[str, Any]  # the other arguments


class Comparison(NamedTuple):
    """How far an output or a gradient is from what it should be."""

    name: str
    error: float  # the largest relative error of a row
    tolerance: float

    @property
    def right(self) -> bool:
        return self.error <= self.tolerance  # NaN is not


def compare(found: Mapping[str, Tensor], exact: Mapping[str, Tensor], dtype: torch.dtype) -> list[Comparison]:
    """Every tensor of `exact` with that of the same name in `found`, computed in `dtype`."""
    return [Comparison(name, _error(found[name], value), _tolerance(value, dtype)) for name, value in exact.items()]


def _tolerance(x: Tensor, dtype: torch.dtype) -> float:
    return TF32_TOLERANCE if dtype == torch.float32 and x.is_cuda else TOLERANCES[dtype]


def _error(found: Tensor, exact: Tensor) -> float:
    """Of a row: |found - exact| / |exact|, for small rows relative to the root mean square of all rows' norms."""
    rows = exact.reshape(-1, exact.shape[-1] if exact.dim() else 1)
    norms = rows.norm(dim=1)
    differences = (found.double().reshape(rows.shape) - rows).norm(dim=1)
    return float((differences / norms.maximum(norms.square().mean().sqrt())).max())


def in_float64(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.double() for name, x in inputs.items()}


def outputs_and_gradients(
    function: Callable[..., Any], inputs: Mapping[str, Tensor], **options: Any
) -> dict[str, Tensor]:
    """The function's outputs by name, and the gradients of the first one times `gradient_like` it."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    result = function(**leaves, **options)
    outputs = {"output": result} if isinstance(result, Tensor) else result._asdict()
    first = next(iter(outputs.values()))
    grads = torch.autograd.grad(first, list(leaves.values()), gradient_like(first))
    results = outputs | {f"gradient of {name}": x for name, x in zip(leaves, grads, strict=True)}
    return {name: x.detach() for name, x in results.items()}


def gradient_like(x: Tensor) -> Tensor:
    """The same random elements in every dtype: those of bfloat16."""
    return _random(torch.Generator().manual_seed(1), x.shape, torch.bfloat16).to(x)


def _random(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)


def _inputs(case: Case, generator: torch.Generator, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: _random(generator, shape, case.dtype).to(case.device) for name, shape in shapes.items()}


def _temperature(case: Case) -> dict[str, Tensor]:
    return {"temperature": torch.tensor(0.1, dtype=torch.float32, device=case.device)}


def _attention(case: Case) -> Iterator[Problem]:
    generator, size = torch.Generator().manual_seed(0), case.head_dim or 64
    inputs = _inputs(case, generator, q=(2, 75, 4, size), k=(2, 75, 2, size), v=(2, 75, 2, size))
    yield Problem("padded", "soft_mask_attention", inputs, {"alpha": 0.3})
    lengths = [1, 0, 19, 135]
    tokens = sum(lengths)
    options = {
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).to(case.device, torch.int32),
        "max_seqlen": max(lengths),
        "alpha": torch.tensor(0.6, dtype=torch.float64, device=case.device),
        "saturation": "query",
        "deterministic": True,
    }
    inputs = _inputs(case, generator, q=(tokens, 4, size), k=(tokens, 2, size), v=(tokens, 2, size))
    yield Problem("packed", "soft_mask_attention_varlen", inputs, options)


def _info_nce(case: Case) -> Iterator[Problem]:
    rows, negatives, generator = 135, 2, torch.Generator().manual_seed(0)
    vectors, lists = (rows, EMBEDDING_SIZE), (rows, negatives, EMBEDDING_SIZE)
    inputs = _inputs(case, generator, queries=vectors, positives=vectors, negatives=lists) | _temperature(case)
    ids = torch.randint(0, rows // 2, (rows,), generator=generator)
    negative_ids = ids[torch.randint(0, rows, (rows, negatives), generator=generator)]
    options = {
        "dims": [32, EMBEDDING_SIZE],
        "positive_ids": ids.to(case.device),
        "negative_ids": negative_ids.to(case.device),
    }
    for scope in ("shared", "private"):
        yield Problem(f"{scope} negatives", "info_nce", inputs, options | {"negative_scope": scope})


def _cosent(case: Case) -> Iterator[Problem]:
    generator, shape = torch.Generator().manual_seed(0), (100, EMBEDDING_SIZE)
    inputs = _inputs(case, generator, a=shape, b=shape) | _temperature(case)
    labels = torch.randint(0, 6, shape[:1], generator=generator).to(case.device)
    yield Problem("graded pairs", "cosent", inputs, {"labels": labels, "dims": [32, EMBEDDING_SIZE]})


PROBLEMS: dict[str, Callable[[Case], Iterator[Problem]]] = {
    "soft_mask_attention": _attention,
    "info_nce": _info_nce,
    "cosent": _cosent,
}
