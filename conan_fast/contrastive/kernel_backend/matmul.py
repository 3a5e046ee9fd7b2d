"""GEMMs with float32 accumulation, by torch's library."""

from __future__ import annotations

import torch
from torch import Tensor

_TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def multiply(out: Tensor, a: Tensor, b: Tensor, *, add: bool) -> None:
    """out = a @ b, or out += a @ b: out [m, n] float32, a [m, k] and b [k, n] of one dtype.

    float32 GEMMs follow torch.backends.cuda.matmul.allow_tf32 as all of torch's do.
    """
    if a.dtype == torch.float32:
        torch.addmm(out, a, b, beta=int(add), out=out)
    elif a.device.type != "cuda":  # a CPU GEMM of 16-bit operands has no float32 result; this one is exact
        multiply(out, a.float(), b.float(), add=add)
    elif _TORCH >= (2, 10):  # 2.8 and 2.9 have the function, but add to 16-bit tensors only
        torch.ops.aten.addmm.dtype_out(out, a, b, torch.float32, beta=int(add), out=out)
    elif _TORCH >= (2, 8):
        if add:
            out += torch.mm(a, b, out_dtype=torch.float32)
        else:
            torch.mm(a, b, out_dtype=torch.float32, out=out)
    elif add:  # each product is rounded to 16 bits, their sum is not
        out += a @ b
    else:
        out.copy_(a @ b)
