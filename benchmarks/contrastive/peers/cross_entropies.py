"""Fused linear cross-entropies of libraries: InfoNCE with normalised prefixes, one call for each dim.

Cut cross-entropy (Triton) keeps nothing N x M in memory and computes the scores again for the gradients. By default it
skips blocks of scores with a very small gradient, and sums gradients in the dtype of the inputs, the queries' M / 128
times. In bfloat16 that is off by 8 % at M = 32,768 and by 18 % at 131,072, emulated in torch with these inputs at
d = 256. Its exact form does neither. Written against the sources of github.com/apple/ml-cross-entropy 25.6.4 and of the
older 25.1.1 of the package index, whose exact form only skips nothing. Compiled for sm_80 and sm_90.

Liger-Kernel 0.8.5: the first of its two goes by chunks of rows, with as many scores in a chunk as the queries have
elements, GEMMs by cuBLAS and the softmax in Triton, and computes the gradients with the loss. The candidates' gradients
are summed in the dtype of the inputs, once for each chunk: by default 512 times at N = 16,384, M = 131,072 and d = 256,
and in bfloat16 the negatives' are off by 9 %, emulated as above. The second computes the scores again.

Inf-CL 1.2.1 (Triton), its form for one GPU, computes in float32, with TF32 GEMMs, and converts other inputs itself.
With an N above 64 that is not a multiple of 64 it reads past the end of a vector: gradients of the candidates can be
NaN. Compiled for sm_80 and sm_90. None of these has run on a GPU yet.

torch's own (2.13 and newer) computes the scores of some rows at a time.
"""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.contrastive.cases import TEMPERATURE, CrossEntropy, InfoNCEImplementation, Inputs, per_dim
from benchmarks.suite import NotRun

SCORES = 2**28  # bytes; the default size of our own workspace
WIDTHS = (256, 128, 64, 32, 16)  # of the "heads" that Inf-CL splits a row into


def needs_a_gpu(inputs: Inputs) -> None:
    if inputs[0].device.type != "cuda":
        raise NotRun("has only CUDA kernels")


def _cut(exact: bool, inputs: Inputs, _: Sequence[int]) -> CrossEntropy:
    from cut_cross_entropy import linear_cross_entropy

    needs_a_gpu(inputs)
    older = "accum_e_fp32" not in inspect.signature(linear_cross_entropy).parameters
    options: dict[str, Any] = {} if not exact else {"filter_eps": None} if older else {"impl": "cce_exact"}
    return lambda queries, *others: linear_cross_entropy(queries / TEMPERATURE, *others, **options)


def _liger(tuned: bool, inputs: Inputs, _: Sequence[int]) -> CrossEntropy:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    needs_a_gpu(inputs)

    def cross_entropy(queries: Tensor, candidates: Tensor, labels: Tensor) -> Tensor:
        tuning = {"accum_dtype": torch.float32, "chunk_mem_const": max(1, SCORES // queries.nbytes)}
        options: dict[str, Any] = tuning if tuned else {}
        return liger_fused_linear_cross_entropy(queries / TEMPERATURE, candidates, labels, **options)

    return cross_entropy


def _liger_scaled(inputs: Inputs, _: Sequence[int]) -> CrossEntropy:
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    return lambda *tensors: LigerFusedLinearScaledCrossEntropyFunction.apply(*tensors, TEMPERATURE).mean()


def _inf_cl(inputs: Inputs, dims: Sequence[int]) -> CrossEntropy:
    from inf_cl import cal_flash_loss

    needs_a_gpu(inputs)
    if any(dim % WIDTHS[-1] for dim in dims):
        raise NotRun(f"supports only dims that are multiples of {WIDTHS[-1]}")

    def cross_entropy(queries: Tensor, candidates: Tensor, labels: Tensor) -> Tensor:
        width = next(width for width in WIDTHS if queries.shape[1] % width == 0)
        return cal_flash_loss(queries, candidates, labels, 1 / TEMPERATURE, width).mean()

    return cross_entropy


def _torch_chunked(inputs: Inputs, _: Sequence[int]) -> CrossEntropy:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise NotRun(f"torch {torch.__version__} does not have it")
    linear_cross_entropy, options = torch.nn.functional.linear_cross_entropy, torch.nn.LinearCrossEntropyOptions()
    return lambda queries, *others: linear_cross_entropy(queries / TEMPERATURE, *others, options=options)


LIGER = "Liger-Kernel's fused linear cross-entropy for each dim, default options"
LIGER_SCALED = "Liger-Kernel's fused linear scaled cross-entropy for each dim: CuTe kernels on Hopper, torch elsewhere"
TORCH = "torch's linear_cross_entropy for each dim, in chunks of its choice"
IMPLEMENTATIONS = tuple(
    InfoNCEImplementation(name, "rival", about, per_dim(cross_entropy_of), squares=squares, prefixes=prefixes)
    for name, about, cross_entropy_of, squares, prefixes in (
        ("cut_cross_entropy", "Cut cross-entropy for each dim, default options", partial(_cut, False), 0, 1),
        ("cut_cross_entropy_exact", "its exact form: no gradient skipped, float32 sums", partial(_cut, True), 0, 2),
        ("liger", LIGER, partial(_liger, False), 0, 1),
        ("liger_tuned", "the same with 256 MiB of scores at a time and float32 sums", partial(_liger, True), 0, 2),
        ("liger_scaled", LIGER_SCALED, _liger_scaled, 0, 1),
        ("inf_cl", "Inf-CL for each dim, in float32 (TF32), including the conversion", _inf_cl, 0, 3),
        ("torch_chunked", TORCH, _torch_chunked, 1, 2),
    )
)
