"""`python -m conan_fast`: what this installation holds, and whether every operator computes what it should here."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import conan_fast
from conan_fast import _backends, _first_use, _native, _self_test, reference
from conan_fast._self_test import Case, Comparison

DESCRIPTION = """\
Shows what this installation of conan_fast holds: its version and folder, the compiled kernels, the backends that can be
used, and why others cannot. Then tests every operator on every backend there is (torch on the CPU and the GPU, cuda on
the GPU): output and gradients on small random inputs against the plain definitions (conan_fast.reference) in float64.

A line of the test shows the largest relative error of a row of an output or gradient, what is allowed, and the time of
the first forward and backward pass. WRONG names what is wrong. The exit status is 1 if anything is, else 0.
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m conan_fast", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(arguments)
    print("\n".join(installation()), flush=True)
    os.environ[_first_use.VARIABLE] = "0"  # the test below would only see what that check found
    print(f"\n{'operator':50}{'backend':>10}{'error':>10}{'allowed':>10}{'ms':>10}")
    right = True
    for case in cases():
        line, passed = tested(case)
        print(line, flush=True)
        right = right and passed
    return 0 if right else 1


def installation() -> Iterator[str]:
    """`build_info`, in lines."""
    info = conan_fast.build_info()
    yield f"conan_fast {info['version']} in {Path(conan_fast.__file__).parent}"
    yield f"torch {torch.__version__}, Python {platform.python_version()}"
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        yield f"GPU {index}: {torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"
    if info["cuda_version"]:
        yield f"kernels: compiled by CUDA {info['cuda_version']} for {', '.join(info['compiled_architectures'])}"
    yield f"backends: {', '.join(info['available_backends'])}"
    if reason := info["missing_backends"].get("cuda"):
        yield f"backend cuda is not available: {reason}"


def cases() -> Iterator[Case]:
    """Every operator, backend and device; with kernels also every dtype and head_dim that they support."""
    from conan_fast.attention.kernel_backend import DTYPES as ATTENTION_DTYPES
    from conan_fast.contrastive.kernel_backend.backend import DTYPES as INFO_NCE_DTYPES

    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    for device in (torch.device("cpu"), *gpus):
        for operator in _self_test.PROBLEMS:
            yield Case(operator, "torch", device, torch.float32)
    for backend, device in ("emulated", torch.device("cpu")), *(("cuda", gpu) for gpu in gpus):
        if _backends.missing_reason(backend) or (device.type == "cuda" and _native.gpu_unsupported(device.index)):
            continue
        for dtype in ATTENTION_DTYPES:
            for head_dim in _native.module(backend).head_dims:
                yield Case("soft_mask_attention", backend, device, dtype, head_dim)
        for dtype in INFO_NCE_DTYPES:
            yield Case("info_nce", backend, device, dtype)


def tested(case: Case) -> tuple[str, bool]:
    """(a line about the case, whether everything is right)."""
    place = f"{case!s:44}{case.device!s:>6}{case.backend:>10}"
    try:
        milliseconds, found = compare(case)
    except Exception as error:
        return f"{place}  WRONG: {type(error).__name__}: {error}", False
    wrong = [comparison.name for comparison in found if not comparison.right]
    # The largest share of what is allowed; NaN exceeds everything.
    worst = max(found, key=lambda comparison: (not comparison.right, comparison.error / comparison.tolerance))
    verdict = f"WRONG: {', '.join(wrong)}" if wrong else "ok"
    return f"{place}{worst.error:10.1e}{worst.tolerance:10.0e}{milliseconds:10.1f}  {verdict}", not wrong


def compare(case: Case) -> tuple[float, list[Comparison]]:
    """(milliseconds of the operator, every output and gradient beside the definition's)."""
    found, milliseconds = [], 0.0
    for problem in _self_test.PROBLEMS[case.operator](case):
        options = problem.options if case.operator == "cosent" else problem.options | {"backend": case.backend}
        start = time.perf_counter()
        results = _self_test.outputs_and_gradients(getattr(conan_fast, problem.function), problem.inputs, **options)
        if case.device.type == "cuda":
            torch.cuda.synchronize(case.device)
        milliseconds += 1000 * (time.perf_counter() - start)
        definition, inputs = getattr(reference, problem.function), _self_test.in_float64(problem.inputs)
        exact = _self_test.outputs_and_gradients(definition, inputs, **problem.options)
        found += [
            comparison._replace(name=f"{problem.name}: {comparison.name}")
            for comparison in _self_test.compare(results, exact, case.dtype)
        ]
    return milliseconds, found


if __name__ == "__main__":
    sys.exit(main())
