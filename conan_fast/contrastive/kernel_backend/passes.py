"""InfoNCE by the kernels: which rows and candidates go together through which kernels and GEMMs.

As in the torch backend all prefixes share the GEMMs, and gradients are made from softmax weights in a bounded
workspace. There are two ways:
- whole rows: the weights of some rows and all candidates fit, so their logsumexp is known and the gradient follows at
  once; 3 GEMMs in all if the gradients of queries and candidates are wanted;
- blocks: a first pass over everything finds the logsumexp and keeps nothing else; a second one goes through blocks of
  rows and candidates, computes their weights again and the gradient from them; 4 GEMMs.
Nothing here waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ... import _checks
from ..batch import Batch, Gradients, Wanted, dim_slices
from . import workspace
from .launch import Kernels
from .matmul import multiply
from .private import PrivateNegatives
from .score_block import (
    LN2,
    Candidates,
    GradientScales,
    GradientSum,
    QueryChunk,
    ScoreBlock,
    Vectors,
    padded,
    suffix_sums,
)

# fp16 ends at 65,504: the largest operand of the gradient's GEMMs is scaled to this.
FP16_LARGEST_OPERAND = 2.0**15


class Passes:
    """The passes over one batch, whose vectors are here as the kernels take them."""

    def __init__(self, backend: str, batch: Batch, wanted: Wanted) -> None:
        self.batch, self.wanted, queries, dims = batch, wanted, batch.queries, batch.dims
        self.kernels = kernels = Kernels(backend, dims, queries.device, _on_device(batch.temperature, queries.device))
        self.dtype = queries.dtype
        self.slices = dim_slices(dims)
        self.width = padded(queries.shape[1], 8)
        self.queries = kernels.vectors(queries, batch.query_ids)
        positives = kernels.vectors(batch.positives, batch.positive_ids)
        self.candidates = [Candidates(positives, batch.first_positive, wanted.positives)]
        if batch.shared is not None:
            self.candidates.append(Candidates(kernels.vectors(batch.shared, batch.shared_ids), None, wanted.shared))
        self.private = None
        if batch.private is not None and batch.private.numel():
            self.private = PrivateNegatives(kernels, batch.private, batch.private_ids)
        # The kernel for private negatives makes their gradients together with their part of the queries'.
        self.with_private = self.private is not None and (wanted.queries or wanted.private)
        self.sizes = workspace.Sizes(
            rows=len(queries),
            columns=[len(candidates.vectors) for candidates in self.candidates],
            dims=len(dims),
            element=queries.element_size(),
            width=self.width,
            private=0 if batch.private is None else batch.private.shape[1],
            tile=kernels.tile,
            segment=kernels.segment,
        )

    def statistics(self) -> tuple[Tensor, Tensor]:
        """(logsumexp, own positives' scores) [dims, N]; 1 GEMM."""
        logsumexp, own_scores = self._statistics_room()
        rows, columns = workspace.statistics(self.sizes)
        # The kernels for 16 bits keep scores on chip; the GEMMs of float32 features write dot products to memory.
        room = self._room(rows, [columns]) if self.dtype == torch.float32 else None
        for chunk in self._chunks(rows):
            partials, segment = self._partials(chunk, self.sizes.columns), 0
            for candidates in self.candidates:
                for start in range(0, len(candidates.vectors), columns):
                    part = candidates.part(start, start + columns, self.kernels.tile)
                    self._score(ScoreBlock(chunk, part, partials, segment, room))
                    segment += self.kernels.segments(len(part.vectors))
            logsumexp[:, chunk.rows], _ = self._combine(chunk, partials)
            own_scores[:, chunk.rows] = chunk.own_scores
        return logsumexp, own_scores

    def whole_rows(self, rows: int) -> tuple[Tensor, Tensor, Gradients]:
        """(logsumexp, own positives' scores, gradients) in one sweep, `rows` at a time; 3 GEMMs."""
        kernels, kept = self.kernels, _checks.kept_gradient_dtype(self.dtype)
        scales = self._scales()
        logsumexp, own_scores = self._statistics_room()
        grad_queries = kernels.empty(len(self.queries), self.width, dtype=kept) if self.wanted.queries else None
        grad_private = self._private_room(kept)
        for candidates in self.candidates:
            self._start_gradient(candidates)
        radial_total = kernels.zeros()
        room = self._room(rows, self.sizes.columns)
        for chunk in self._chunks(rows):
            partials, blocks, used, segment = self._partials(chunk, self.sizes.columns), [], 0, 0
            for candidates in self.candidates:
                block = ScoreBlock(chunk, candidates, partials, segment, room[used:])
                used += self._score(block)
                segment += kernels.segments(len(candidates.vectors))
                blocks.append(block)
            chunk.logsumexp, chunk.mean_score = self._combine(chunk, partials)
            logsumexp[:, chunk.rows], own_scores[:, chunk.rows] = chunk.logsumexp, chunk.own_scores
            if self.wanted.queries or self.with_private:
                chunk.grad = GradientSum(kernels.empty(len(chunk.vectors), self.width))
            for block in blocks:
                self._differentiate(block, scales)
            radial = self._rows_radial(chunk, scales, grad_private)
            radial_total += radial.sum()
            if grad_queries is not None and chunk.grad is not None:
                self._finish(chunk.vectors, chunk.grad, radial, scales, grad_queries[chunk.rows])
        grads = [grad_queries]
        for candidates in self.candidates:
            collected = self._collected(candidates)
            grads.append(collected and self._finish_in_place(candidates.vectors, *collected, scales, kept))
        return logsumexp, own_scores, self._gradients(grads, grad_private, radial_total)

    def blocks(self, logsumexp: Tensor, kept: torch.dtype) -> Gradients:
        """Gradients in dtype `kept` where logsumexp [dims, N] is given; 3 GEMMs.

        Candidates are finished block by block; the queries' gradient sums, which are smaller, are kept throughout.
        """
        kernels, scales = self.kernels, self._scales()
        rows, columns = workspace.blocks(self.sizes)
        room = self._room(rows, [columns])
        total = kernels.empty(len(self.queries), self.width) if self.wanted.queries or self.with_private else None
        chunks = list(self._chunks(rows))
        for chunk in chunks:
            chunk.logsumexp = logsumexp[:, chunk.rows].contiguous()
            chunk.grad = None if total is None else GradientSum(total[chunk.rows])
        grads: list[Tensor | None] = []
        grad_private = self._private_room(kept)
        for candidates in self.candidates:
            shape = len(candidates.vectors), self.width
            grads.append(kernels.empty(*shape, dtype=kept) if candidates.wanted else None)
            for start in range(0, len(candidates.vectors), columns):
                part = self._start_gradient(candidates.part(start, start + columns, kernels.tile))
                for chunk in chunks:
                    block = ScoreBlock(chunk, part, self._partials(chunk, [len(part.vectors)]), 0, room)
                    self._score(block)
                    chunk.mean_score += kernels.combine(block.partials, None, chunk.logsumexp)[1]
                    self._differentiate(block, scales)
                if (out := grads[-1]) is not None and (collected := self._collected(part)) is not None:
                    self._finish(part.vectors, *collected, scales, out[start : start + columns])
        radial = kernels.zeros(len(self.slices), len(self.queries))
        for chunk in chunks:
            assert chunk.logsumexp is not None
            if chunk.grad is not None:
                chunk.grad.result()
            if self.private is not None:
                chunk.private = self.private.score(chunk)
                chunk.mean_score += chunk.private.mean_score(chunk.logsumexp)
            radial[:, chunk.rows] = self._rows_radial(chunk, scales, grad_private)
        radial_total = radial.sum()
        grad_queries = None
        if total is not None and self.wanted.queries:
            sums = GradientSum(total, started=True)
            grad_queries = self._finish_in_place(self.queries, sums, radial, scales, kept)
        grads.insert(0, grad_queries)
        return self._gradients(grads, grad_private, radial_total)

    def _scales(self) -> GradientScales:
        dim_weights, total = self.batch.dim_weights, self.batch.total
        tau, operands = self.kernels.temperature, None
        assert tau is not None
        if self.dtype == torch.float16:
            # |H_m| is at most the sum of |w_d| times the largest inverse norms.
            bound = _largest(self.queries.inverse_norms) if len(self.queries) else torch.ones_like(tau)
            norms = [_largest(part.vectors.inverse_norms) for part in self.candidates if len(part.vectors)]
            bound = bound * torch.stack([torch.ones_like(tau), *norms]).amax() * sum(map(abs, dim_weights))
            operands = FP16_LARGEST_OPERAND / torch.where(bound > 0, bound, 1)
        results = 1 / (tau * total)
        return GradientScales(dim_weights, total, operands, results if operands is None else results / operands)

    def _room(self, rows: int, columns: Sequence[int]) -> Tensor:
        """Room for the weights of so many rows, or all if they are fewer, with each of so many columns."""
        widths = [padded(count, self.kernels.tile) for count in columns]
        return self.kernels.empty(len(self.slices) * min(rows, len(self.queries)) * sum(widths), dtype=self.dtype)

    def _partials(self, chunk: QueryChunk, columns: Sequence[int]) -> Tensor:
        """Room for the partial sums of a chunk with each of so many columns."""
        return self.kernels.partials(len(chunk.vectors), sum(self.kernels.segments(count) for count in columns))

    def _statistics_room(self) -> tuple[Tensor, Tensor]:
        shape = len(self.slices), len(self.queries)
        return self.kernels.empty(*shape), self.kernels.empty(*shape)

    def _private_room(self, kept: torch.dtype) -> Tensor | None:
        if self.batch.private is None or not (self.wanted.private or self.with_private):
            return None
        return self.kernels.empty(*self.batch.private.shape[:2], self.width, dtype=kept)

    def _chunks(self, size: int) -> Iterator[QueryChunk]:
        for start in range(0, len(self.queries), size):
            part = self.queries.part(start, start + size, self.kernels.tile)
            own_scores, mean_score = (self.kernels.zeros(len(self.slices), len(part)) for _ in range(2))
            yield QueryChunk(start, part, own_scores, mean_score)

    def _start_gradient(self, candidates: Candidates) -> Candidates:
        if candidates.wanted:
            count = len(candidates.vectors)
            candidates.grad = GradientSum(self.kernels.empty(count, self.width))
            candidates.radial = self.kernels.zeros(len(self.slices), count)
        return candidates

    def _collected(self, candidates: Candidates) -> tuple[GradientSum, Tensor] | None:
        """(gradient sum, sum_i G s), after the last chunk of queries; None if the gradient is not wanted."""
        if candidates.grad is None or candidates.radial is None:
            return None
        return candidates.grad, candidates.radial / self.batch.total

    def _score(self, block: ScoreBlock) -> int:
        """Computes a block's scores: its partial sums, and its weights if they are kept. Returns their number."""
        weights, queries, candidates = block.weights, block.chunk.vectors, block.candidates.vectors
        if self.dtype == torch.float32:
            assert weights is not None
            for m, columns in enumerate(self.slices):
                left, right = queries.features[:, columns], candidates.features[:, columns]
                multiply(weights[m, :, : len(candidates)], left, right.T, add=False)
        self.kernels.scores(block)
        return 0 if weights is None else weights.numel()

    def _combine(self, chunk: QueryChunk, partials: Tensor) -> tuple[Tensor, Tensor]:
        """(logsumexp, mean score) of the chunk over all candidates; scores the private ones."""
        if self.private is not None:
            chunk.private = self.private.score(chunk)
        extra = None if chunk.private is None else chunk.private.scores
        return self.kernels.combine(partials, extra, None)

    def _differentiate(self, block: ScoreBlock, scales: GradientScales) -> None:
        """Adds the GEMMs H C to the chunk's gradient sum, H^T Q to the candidates', and to their radial parts.

        Only the GEMMs whose gradient is wanted.
        """
        chunk, candidates = block.chunk, block.candidates
        if chunk.grad is None and candidates.grad is None:
            return
        radial = self.kernels.gradient_operands(block, scales)
        assert block.weights is not None
        for m, columns in enumerate(self.slices):
            operand = block.weights[m, :, : len(candidates.vectors)]
            if self.wanted.queries and chunk.grad is not None:
                right = candidates.vectors.features[:, columns]
                multiply(chunk.grad.value[:, columns], operand, right, add=chunk.grad.started)
            if candidates.grad is not None:
                left = chunk.vectors.features[:, columns]
                multiply(candidates.grad.value[:, columns], operand.T, left, add=candidates.grad.started)
        if self.wanted.queries and chunk.grad is not None:
            chunk.grad.started = True
        if candidates.grad is not None and candidates.radial is not None:
            candidates.grad.started = True
            candidates.radial += radial

    def _rows_radial(self, chunk: QueryChunk, scales: GradientScales, grad_private: Tensor | None) -> Tensor:
        """sum_j G_ij s_ij [dims, rows]. Writes the private negatives' gradients and adds their part to the rows'."""
        if self.private is not None and self.with_private and grad_private is not None:
            assert chunk.grad is not None
            chunk.grad.result()  # the kernel adds to it
            self.private.differentiate(chunk, scales, grad_private[chunk.rows])
        radial = chunk.mean_score - chunk.own_scores * LN2
        for m, dim_weight in enumerate(scales.dim_weights):
            radial[m] *= dim_weight / scales.total
        return radial

    def _finish(self, vectors: Vectors, grad: GradientSum, radial: Tensor, scales: GradientScales, out: Tensor) -> None:
        """Writes the gradients of vectors, their norms' part subtracted, to out; radial [dims, n] is sum G s."""
        self.kernels.finish(grad.result(), vectors, norm_part(vectors, radial), scales.results, out)

    def _finish_in_place(
        self, vectors: Vectors, grad: GradientSum, radial: Tensor, scales: GradientScales, kept: torch.dtype
    ) -> Tensor:
        """The same in the sum's own memory: the gradient sums of a large batch are the largest tensors there are."""
        dots, part_of_norms = grad.result(), norm_part(vectors, radial)
        if kept == torch.float32:
            self.kernels.finish(dots, vectors, part_of_norms, scales.results, dots)
            return dots
        # Row r in 16 bits lies where row r / 2 was in 32. Twice as many rows each time, so that it has been read.
        out, start, stop = dots.view(-1).view(kept)[: dots.numel()].view(dots.shape), 0, 1
        while start < len(vectors):
            rows = slice(start, stop)
            part = vectors.part(start, stop, self.kernels.tile)
            self.kernels.finish(dots[rows], part, part_of_norms[:, rows], scales.results, out[rows])
            start, stop = stop, 2 * stop
        return out

    def _gradients(self, grads: list[Tensor | None], grad_private: Tensor | None, radial_total: Tensor) -> Gradients:
        """As the caller knows the vectors. grads: of queries, positives and, if there are any, shared negatives."""
        queries, positives, shared, *_ = *grads, None
        found = [queries, positives, shared, grad_private if self.wanted.private else None]
        # Columns that pad come off: a copy, but only for sizes that are no multiple of 8.
        cut = [grad if grad is None else grad[..., : self.queries.size].contiguous() for grad in found]
        tau, tau_grad = self.kernels.temperature, None
        if self.wanted.temperature:
            assert tau is not None
            tau_grad = (-radial_total / tau).to(self.batch.temperature)
        return Gradients(*[*cut, tau_grad])


def norm_part(vectors: Vectors, radial: Tensor) -> Tensor:
    """[dims, n]: how much of a vector itself its gradient has in the columns that each prefix adds."""
    return suffix_sums(radial * vectors.inverse_norms[:, : len(vectors)].square())


def _largest(inverse_norms: Tensor) -> Tensor:
    """The largest of those that are finite: NaN stays in its vector."""
    return inverse_norms.nan_to_num(nan=0.0, posinf=0.0).amax()


def _on_device(temperature: Tensor, device: torch.device) -> Tensor:
    """The temperature as float32 on `device`; one that is on the host is checked."""
    if temperature.device.type == "cpu":
        value = float(temperature)
        _checks.temperature_value(value)
        if device.type != "cpu":
            return torch.full((), value, dtype=torch.float32, device=device)
        return temperature.to(torch.float32)
    return _checks.temperature_tensor(temperature).to(torch.float32)
