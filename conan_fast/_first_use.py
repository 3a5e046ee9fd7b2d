"""The check of kernels at their first use on a GPU, as long as they have not been seen right on that kind of GPU.

Forward and backward pass are compared with the torch backend in float64 on the problems of `_self_test.py`: once per
process, GPU, operator, dtype and head_dim. CONAN_FAST_SELF_TEST=0 switches it off.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ._self_test import PROBLEMS, Case, compare, gradient_like, in_float64

# (operator, compute capability) whose kernels need no check. Empty: no GPU has run them yet.
SEEN_RIGHT: frozenset[tuple[str, tuple[int, int]]] = frozenset()
CHECKED_BACKENDS = {"cuda"}
VARIABLE = "CONAN_FAST_SELF_TEST"
_faults: dict[Case, str | None] = {}  # what was found; None: right, or not to be checked


@torch.compiler.assume_constant_result
def fault(
    operator: str, backend: str, device: torch.device, dtype: torch.dtype, head_dim: int | None, tracing: bool
) -> str | None:
    """What is wrong with the kernels that a call would use; None if they are right or cannot be checked now.

    tracing: torch.compile asks; `_backends.choose` does not warn then. The check waits for the GPU. CUDA graph capture
    forbids that: during a capture the check is put off to the next call.
    """
    if backend not in CHECKED_BACKENDS:
        return None
    case = Case(operator, backend, device, dtype, head_dim)
    if case in _faults:
        return _faults[case]
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return None
    found = None
    if _switched_on() and not _seen_right(case):
        try:
            # No autocast, dispatch mode, CUDA stream or tracing of the caller applies in a thread of its own. Autograd
            # must not run there: the caller may be inside a backward pass and block the engine's thread.
            with ThreadPoolExecutor(1) as thread:
                found = thread.submit(_examine, case).result()
        except torch.OutOfMemoryError:
            return None
    _faults[case] = found
    if found is not None and tracing:
        warnings.warn(f"conan_fast: {found}", stacklevel=2)
    return found


def _switched_on() -> bool:
    value = os.environ.get(VARIABLE, "1")
    if value not in ("0", "1"):
        raise ValueError(f"{VARIABLE} must be 0 (no check of a kernel's first use) or 1, got {value!r}")
    return value == "1"


def _seen_right(case: Case) -> bool:
    if case.device.type != "cuda":
        return False
    return (case.operator, torch.cuda.get_device_capability(case.device)) in SEEN_RIGHT


def _examine(case: Case) -> str | None:
    try:
        finding = _first_wrong(case)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        finding = f"it raised {type(error).__name__}: {error}"
    if finding is None:
        return None
    return (
        f"the kernels of {case} failed the check of their first use on {_name(case.device)}: {finding}. "
        f"`python -m conan_fast` tests all kernels; {VARIABLE}=0 switches the check off"
    )


def _name(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} ({device}, compute capability {major}.{minor})"


@torch.no_grad()
def _first_wrong(case: Case) -> str | None:
    for problem in PROBLEMS[case.operator](case):
        found, exact = (
            RUN[case.operator](backend, inputs, problem.options)
            for backend, inputs in ((case.backend, problem.inputs), ("torch", in_float64(problem.inputs)))
        )
        for name, error, tolerance in compare(found, exact, case.dtype):
            if not error <= tolerance:
                return f"{problem.name}: relative error of {name} {error:.2g}, expected at most {tolerance:.2g}"
    return None


def _attention(backend: str, inputs: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
    from .attention.ops import BACKENDS
    from .attention.settings import Saved, Settings

    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    settings = Settings(
        cu_seqlens=options.get("cu_seqlens"),
        max_seqlen=options.get("max_seqlen", 0),
        alpha=options["alpha"],
        scale=q.shape[-1] ** -0.5,
        saturation=options.get("saturation", "key"),
        deterministic=options.get("deterministic", False),
    )
    out, logsumexp = BACKENDS[backend].forward(q, k, v, settings)
    saved = Saved(q, k, v, out, logsumexp)
    grads = BACKENDS[backend].backward(gradient_like(out), saved, [True] * 3, settings)
    return {"the output": out, **_gradients(zip("qkv", grads, strict=True))}


def _info_nce(backend: str, inputs: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
    from .contrastive.backend import BACKENDS
    from .contrastive.batch import Batch, Wanted

    queries, negatives, positive_ids = inputs["queries"], inputs["negatives"], options["positive_ids"]
    shared = options["negative_scope"] == "shared"
    batch = Batch(
        queries=queries,
        positives=inputs["positives"],
        shared=negatives.flatten(0, 1) if shared else None,
        private=None if shared else negatives,
        temperature=inputs["temperature"],
        query_ids=positive_ids,
        positive_ids=positive_ids,
        shared_ids=options["negative_ids"].flatten() if shared else None,
        private_ids=None if shared else options["negative_ids"],
        dims=options["dims"],
        dim_weights=[1.0] * len(options["dims"]),
        first_positive=0,
        total=len(queries),
    )
    wanted = Wanted(*[x is not None for x in batch.features])
    losses, grads = BACKENDS[backend].sweep(batch, wanted)
    scores = BACKENDS[backend].negative_scores(queries, negatives)
    return {"the losses": losses, **_gradients(grads._asdict().items()), "negative_scores": scores}


def _gradients(named: Iterable[tuple[str, Tensor | None]]) -> dict[str, Tensor]:
    return {f"the gradient of {name}": x for name, x in named if x is not None}


RUN: dict[str, Callable[[str, dict[str, Tensor], dict[str, Any]], dict[str, Tensor]]] = {
    "soft_mask_attention": _attention,
    "info_nce": _info_nce,
}
