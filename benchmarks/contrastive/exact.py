"""The gradients of InfoNCE by the definition, once per dim, for some of the rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize


def exact_gradients(
    queries: Tensor,
    candidates: Tensor,
    dims: Sequence[int],
    temperature: float,
    rows: Tensor,
    columns: Tensor,
    dtype: torch.dtype,
    block_bytes: int = 2**29,
) -> tuple[Tensor, Tensor]:
    """dL/dqueries[rows] and dL/dcandidates[columns], computed in `dtype`.

    queries [N, D]; candidates [M, D], of which the first N are the queries' own positives. All logsumexps are needed
    for a candidate's gradient, so every score is computed, some rows at a time.
    """
    count, size = queries.shape
    grad_rows = torch.zeros(len(rows), size, dtype=dtype, device=queries.device)
    grad_columns = torch.zeros(len(columns), size, dtype=dtype, device=queries.device)
    own = torch.arange(count, device=queries.device)
    step = max(1, block_bytes // (dtype.itemsize * len(candidates)))
    for dim in dims:
        q, c = (normalize(x[:, :dim].to(dtype), dim=1) for x in (queries, candidates))
        lse = torch.cat([(part @ c.T).div_(temperature).logsumexp(1) for part in q.split(step)])
        for some, part in zip(rows.split(step), grad_rows.split(step), strict=True):
            weights = ((q[some] @ c.T).div_(temperature) - lse[some, None]).exp_()
            weights[own[: len(some)], some] -= 1
            part[:, :dim] += _through_norm(weights @ c, q[some], queries[some, :dim])
        weights = ((q @ c[columns].T).div_(temperature) - lse[:, None]).exp_()
        weights -= (own[:, None] == columns).to(dtype)
        grad_columns[:, :dim] += _through_norm(weights.T @ q, c[columns], candidates[columns, :dim])
    return grad_rows / (count * temperature), grad_columns / (count * temperature)


def _through_norm(grad: Tensor, unit: Tensor, raw: Tensor) -> Tensor:
    """The gradient of raw, given that of unit = raw / |raw|."""
    return (grad - unit * (grad * unit).sum(1, keepdim=True)) / raw.to(grad.dtype).norm(dim=1, keepdim=True)
