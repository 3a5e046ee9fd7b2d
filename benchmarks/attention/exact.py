"""Soft-masked attention and its gradients by the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def float64_attention(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, *, alpha: float, block_bytes: int = 2**28
) -> list[Tensor]:
    """[out, dq, dk, dv] by the definition, a block of rows at a time; q, grad_out [L, G, D], k, v [L, 1, D]."""
    length, group, head_dim = q.shape
    key = torch.arange(length, device=q.device)
    faded = (alpha * length / (key + 1).double()).clamp(max=1).log()
    out, *grads = (torch.zeros_like(x) for x in (q, q, k, v))
    for rows in key.split(max(1, block_bytes // (8 * group * length))):
        leaves = [x.detach().requires_grad_() for x in (q[rows], k, v)]
        scores = torch.einsum("igd,jhd->gij", leaves[0], leaves[1]) * head_dim**-0.5  # h is 1
        weights = (scores + torch.where(key <= rows[:, None], 0, faded)).softmax(-1)
        block = torch.einsum("gij,jhd->igd", weights, leaves[2])
        out[rows] = block.detach()
        parts = torch.autograd.grad(block, leaves, grad_out[rows])
        for grad, where, part in zip(grads, (rows, key, key), parts, strict=True):
            grad[where] += part
    return [out, *grads]
