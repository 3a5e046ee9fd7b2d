"""InfoNCE of a chunk of queries against some columns of candidates: the torch backend's inner loops.

With q, c raw features, |x|_d the norm of the first d elements and s^d_ij = (q_i.c_j)[:d] / (|q_i|_d |c_j|_d t):
- (q.c)[:d] is a running sum over the slices of columns between neighbouring dims, so all s^d cost one GEMM over D;
- with the logsumexp of a row over all its candidates, G^d = dL/ds^d follows at once;
- the slice that ends at dim m needs H_m = sum over d >= m of G^d / (|q|_d |c|_d t): dq[slice] = H_m c[slice], and
  dc[slice] = H_m^T q[slice], again two GEMMs over D for all dims;
- the norms add -q_i[slice] sum_{d >= m} a_i^d / |q_i|_d^2 with the radial part a_i^d = sum_j G^d_ij s^d_ij; the same
  over columns for c.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._numerics import exp_, logsumexp
from ..norms import prefix_inverse_norms, subtract_norm_part


@dataclass
class Candidates:
    """A set of candidates that all queries share: features [m, D], and what is collected for them."""

    features: Tensor
    ids: Tensor | None  # [m] int64
    first_own: int | None  # the column of query 0's own positive; None if theirs are not among these
    inverse_norms: Tensor  # [dims, m]
    grad: Tensor  # [m, D], empty without gradients
    radial: Tensor  # [dims, m]: sum_i G s


@dataclass
class Inputs:
    """What all chunks of queries have in common."""

    queries: Tensor  # [N, D]
    query_ids: Tensor | None  # [N] int64
    private: Tensor | None  # [N, K, D]
    private_ids: Tensor | None  # [N, K] int64
    candidates: list[Candidates]
    slices: list[slice]  # of the columns that each dim adds
    temperature: Tensor  # in the accumulation dtype, on the queries' device
    loss_weights: Sequence[float]  # of the dims, divided by the number of queries of all processes
    with_gradients: bool

    @property
    def dims(self) -> list[int]:
        return [part.stop for part in self.slices]


class QueryChunk:
    """Some rows of queries, in the accumulation dtype, with running statistics per dim."""

    def __init__(self, inputs: Inputs, rows: slice) -> None:
        self.inputs, self.rows = inputs, rows
        self.features = inputs.queries[rows].to(inputs.temperature.dtype)  # [R, D]
        self.ids = None if inputs.query_ids is None else inputs.query_ids[rows]  # [R] int64
        self.inverse_norms = prefix_inverse_norms(self.features, inputs.dims)  # [dims, R]
        self.scale = self.inverse_norms / inputs.temperature  # [dims, R]: score = dot product * this / |c|
        self.own_scores = torch.zeros_like(self.inverse_norms)  # [dims, R], of the own positives
        self.radial = torch.zeros_like(self.inverse_norms)  # [dims, R]: sum_j G s
        self.grad = torch.zeros_like(self.features) if inputs.with_gradients else self.features.new_empty(0)
        self.private = None if inputs.private is None else PrivateChunk(self)
        if self.private is None:
            self.logsumexp = torch.full_like(self.inverse_norms, -torch.inf)  # [dims, R]
        else:
            self.logsumexp = self.private.scores.logsumexp(2)

    def finish(self) -> Tensor | None:
        """After the last block: completes `grad` and `radial`; the gradient [R, K, D] of the private negatives."""
        private_grad = None if self.private is None else self.private.differentiate()
        subtract_norm_part(self.grad, self.features, self.inverse_norms, self.radial, self.inputs.slices)
        return private_grad


class ScoreBlock:
    """The scores of a chunk of queries against some columns of a set of candidates."""

    def __init__(self, chunk: QueryChunk, candidates: Candidates, columns: slice, workspace: Tensor | None) -> None:
        """workspace: room for the scores of all dims, at least dims * R * C elements; None: they are not kept."""
        self.chunk, self.candidates, self.columns = chunk, candidates, columns
        self.features = candidates.features[columns].to(chunk.features.dtype)  # [C, D]
        self.inverse_norms = candidates.inverse_norms[:, columns]
        shape = (len(chunk.inputs.slices), len(chunk.features), len(self.features))
        self.kept = None if workspace is None else workspace[: shape[0] * shape[1] * shape[2]].view(shape)
        self.own = self._own_square()

    def scores(self) -> Iterator[Tensor]:
        """The scores [R, C] for one dim after the other; each also lies in `kept` if there is room."""
        chunk, masked = self.chunk, self._masked()
        dots = chunk.features.new_zeros(len(chunk.features), len(self.features))
        for m, part in enumerate(chunk.inputs.slices):
            dots.addmm_(chunk.features[:, part], self.features[:, part].T)
            scores = torch.empty_like(dots) if self.kept is None else self.kept[m]
            torch.mul(dots, chunk.scale[m, :, None], out=scores)
            scores.mul_(self.inverse_norms[m])
            if masked is not None:
                scores.masked_fill_(masked, _lowest(scores.dtype))
            yield scores

    def collect(self) -> None:
        """Adds these candidates to the chunk's logsumexp, and notes the own positives' scores."""
        chunk = self.chunk
        for m, scores in enumerate(self.scores()):
            chunk.logsumexp[m] = torch.logaddexp(chunk.logsumexp[m], logsumexp(scores))
            if self.own is not None:
                chunk.own_scores[m, self.own[0]] = scores[self.own].diagonal()

    def differentiate(self) -> None:
        """Adds this block's part of gradients and radial parts, from the kept scores, which are overwritten."""
        assert self.kept is not None
        chunk, candidates, columns = self.chunk, self.candidates, self.columns
        grad_dots: Tensor | None = None  # H_m
        for m in reversed(range(len(chunk.inputs.slices))):
            part, scores, loss_weight = chunk.inputs.slices[m], self.kept[m], chunk.inputs.loss_weights[m]
            grad = exp_(scores - chunk.logsumexp[m, :, None])  # dL/ds without the loss weight
            if self.own is not None:
                grad[self.own].diagonal().sub_(1)
            scores.mul_(grad)
            chunk.radial[m].add_(scores.sum(1), alpha=loss_weight)
            candidates.radial[m, columns].add_(scores.sum(0), alpha=loss_weight)
            grad.mul_(loss_weight * chunk.scale[m, :, None]).mul_(self.inverse_norms[m])
            grad_dots = grad if grad_dots is None else grad_dots.add_(grad)
            chunk.grad[:, part].addmm_(grad_dots, self.features[:, part])
            candidates.grad[columns, part].addmm_(grad_dots.T, chunk.features[:, part])

    def _own_square(self) -> tuple[slice, slice] | None:
        """The square of the block whose diagonal holds the rows' own positives; None if it has none."""
        if self.candidates.first_own is None:
            return None
        offset = self.candidates.first_own + self.chunk.rows.start  # the column of the chunk's first row
        low, high = max(self.columns.start, offset), min(self.columns.stop, offset + len(self.chunk.features))
        if low >= high:
            return None
        return slice(low - offset, high - offset), slice(low - self.columns.start, high - self.columns.start)

    def _masked(self) -> Tensor | None:
        """[R, C]: where the candidate's id equals the query's positive id, its own positive aside."""
        if self.chunk.ids is None or self.candidates.ids is None:
            return None
        same = self.chunk.ids[:, None] == self.candidates.ids[None, self.columns]
        if self.own is not None:
            same[self.own].diagonal().fill_(False)
        return same


class PrivateChunk:
    """The hard negatives [R, K, D] of a chunk's rows, each a candidate of its own query only."""

    def __init__(self, chunk: QueryChunk) -> None:
        """Computes their scores [dims, R, K]."""
        self.chunk, inputs = chunk, chunk.inputs
        assert inputs.private is not None
        self.features = inputs.private[chunk.rows].to(chunk.features.dtype)
        rows, count, size = self.features.shape
        flat = self.features.reshape(rows * count, size)
        self.inverse_norms = prefix_inverse_norms(flat, inputs.dims).view(len(inputs.dims), rows, count)
        self.scores = torch.empty_like(self.inverse_norms)
        dots = torch.zeros_like(self.scores[0])
        for m, part in enumerate(inputs.slices):
            dots += torch.einsum("nkd,nd->nk", self.features[..., part], chunk.features[:, part])
            torch.mul(dots, self.inverse_norms[m] * chunk.scale[m, :, None], out=self.scores[m])
        if inputs.private_ids is not None and chunk.ids is not None:
            self.scores.masked_fill_(inputs.private_ids[chunk.rows] == chunk.ids[:, None], _lowest(dots.dtype))

    def differentiate(self) -> Tensor:
        """Their gradient [R, K, D]; adds their part to the chunk's own."""
        chunk, inputs = self.chunk, self.chunk.inputs
        grad = exp_(self.scores - chunk.logsumexp[..., None])
        for m, loss_weight in enumerate(inputs.loss_weights):
            grad[m] *= loss_weight
        radial = grad * self.scores
        chunk.radial += radial.sum(2)
        grad *= self.inverse_norms * chunk.scale[..., None]
        result = torch.zeros_like(self.features)  # columns past the largest dim have no gradient
        for m, part in enumerate(inputs.slices):
            grad_dots = grad[m:].sum(0)
            chunk.grad[:, part] += torch.einsum("nk,nkd->nd", grad_dots, self.features[..., part])
            result[..., part] = grad_dots[..., None] * chunk.features[:, None, part]
        flat = self.features.flatten(0, 1)
        subtract_norm_part(result.view_as(flat), flat, self.inverse_norms.flatten(1), radial.flatten(1), inputs.slices)
        return result


def _lowest(dtype: torch.dtype) -> float:
    """The score of a masked candidate: weight 0 like -inf, but finite, so that 0 times it is 0."""
    return torch.finfo(dtype).min / 4
