"""Which rows and candidates of InfoNCE go together through which kernels and products.

As in `_info_nce_torch.py` all prefixes share one product, and gradients are made from weights kept in a bounded
workspace. There are two ways through:
- whole rows: the weights of some rows and all candidates fit, so their logsumexp is known and the gradient follows at
  once; 3 products in all;
- blocks: a first pass over everything finds the logsumexp and keeps nothing; a second one goes through blocks of rows
  and candidates, makes their weights again and the gradient from them; 4 products.
On a GPU nothing here waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import _checks
from ..batch import Batch
from . import workspace
from .launch import LN2, Kernels, Vectors, padded, suffix_sums
from .matmul import multiply
from .private import PrivateNegatives, ScoredNegatives

# fp16 ends at 65,504: a factor that brings the largest weight of the gradient's products here.
FP16_LARGEST_WEIGHT = 2.0**15


@dataclass
class Source:
    """Candidates that all queries share. first_own: the column of query 0's own positive; None: there is none here."""

    vectors: Vectors
    first_own: int | None
    first_segment: int  # of its partial sums

    def own_column(self, first_row: int, first_column: int) -> int | None:
        """Where in a block the own positive of its first row is (negative, or too large: outside)."""
        return None if self.first_own is None else self.first_own + first_row - first_column


@dataclass
class Chunk:
    """Some rows of queries, with statistics [dims, rows], scores in units of log 2."""

    start: int
    vectors: Vectors
    own: Tensor  # the own positives' scores; 0 where these are not among the candidates
    mean: Tensor  # sum_j weight_j score_j, natural units
    logsumexp: Tensor | None = None  # None: not known yet
    private: ScoredNegatives | None = None

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + len(self.vectors))


@dataclass
class Scales:
    """What turns the products of weights into gradients."""

    factors: Sequence[float]  # w_d
    total: int
    weights: Tensor | None  # 0-dim: what 16-bit weights are multiplied by; None: 1
    products: Tensor  # 0-dim: 1 / (total temperature weights)


class Work:
    """One call: its vectors as the kernels take them, and the ways through."""

    def __init__(self, backend: str, batch: Batch) -> None:
        self.batch, queries, dims = batch, batch.queries, batch.dims
        self.kernels = kernels = Kernels(backend, dims, queries.device, _on_device(batch.temperature, queries.device))
        self.dtype = queries.dtype
        self.segments = list(zip([0, *dims[:-1]], dims, strict=True))
        self.width = padded(queries.shape[1], 8)
        self.queries = kernels.vectors(queries, batch.query_ids)
        self.sources = [Source(kernels.vectors(batch.positives, batch.positive_ids), batch.first_positive, 0)]
        if batch.shared is not None:
            first = kernels.segments(len(batch.positives))
            self.sources.append(Source(kernels.vectors(batch.shared, batch.shared_ids), None, first))
        self.private = None
        if batch.private is not None and batch.private.numel():
            self.private = PrivateNegatives(kernels, batch.private, batch.private_ids)
        self.problem = workspace.Problem(
            rows=len(queries),
            columns=[len(source.vectors) for source in self.sources],
            dims=len(dims),
            element=queries.element_size(),
            width=self.width,
            private=0 if batch.private is None else batch.private.shape[1],
            tile=kernels.tile,
            segment=kernels.segment,
        )

    def statistics(self) -> tuple[Tensor, Tensor]:
        """(logsumexp, own positives' scores) [dims, N]; 1 product."""
        logsumexp, own = (self.kernels.empty(len(self.segments), len(self.queries)) for _ in range(2))
        rows, columns = workspace.statistics(self.problem)
        # The kernels for 16 bits keep scores on chip, products of float32 have to go somewhere.
        buffer = self._buffer(rows, [columns]) if self.dtype == torch.float32 else None
        for chunk in self._chunks(rows):
            partials = self.kernels.partials(len(chunk.vectors), self._all_segments())
            for source in self.sources:
                for start in range(0, len(source.vectors), columns):
                    first = source.first_segment + self.kernels.segments(start)
                    self._score(chunk, source, start, columns, partials, first, buffer)
            logsumexp[:, chunk.rows], _ = self._combine(chunk, partials)
            own[:, chunk.rows] = chunk.own
        return logsumexp, own

    def whole_rows(self, rows: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(logsumexp, own positives' scores, gradients) in one sweep, `rows` at a time; 3 products."""
        kernels, kept = self.kernels, _checks.kept_gradient_dtype(self.dtype)
        scales = self._scales()
        logsumexp, own = (kernels.empty(len(self.segments), len(self.queries)) for _ in range(2))
        grad_queries = kernels.empty(len(self.queries), self.width, dtype=kept)
        grad_private = self._private_gradient(kept)
        products = [kernels.empty(len(source.vectors), self.width) for source in self.sources]
        sums = [kernels.zeros(len(self.segments), len(source.vectors)) for source in self.sources]
        sum_weighted = kernels.zeros()
        buffer = self._buffer(rows, self.problem.columns)
        for chunk in self._chunks(rows):
            partials = kernels.partials(len(chunk.vectors), self._all_segments())
            blocks, used = [], 0
            for source in self.sources:
                weights = self._score(
                    chunk, source, 0, len(source.vectors), partials, source.first_segment, buffer[used:]
                )
                blocks.append(weights)
                used += weights.numel()
            chunk.logsumexp, chunk.mean = self._combine(chunk, partials)
            logsumexp[:, chunk.rows], own[:, chunk.rows] = chunk.logsumexp, chunk.own
            product = kernels.empty(len(chunk.vectors), self.width)
            for index, source in enumerate(self.sources):
                sums[index] += self._differentiate(
                    chunk, source.vectors, source.own_column(chunk.start, 0), blocks[index], partials,
                    source.first_segment, scales, product, products[index], index > 0, chunk.start > 0,
                )  # fmt: skip
            weighted = self._row_weights(chunk, scales, product, grad_private)
            sum_weighted += weighted.sum()
            self._finish(chunk.vectors, product, weighted, scales, grad_queries[chunk.rows])
        grads = [grad_queries]
        for source, product, weighted in zip(self.sources, products, sums, strict=True):
            if not len(self.queries):
                product.zero_()
            grads.append(self._finish_in_place(source.vectors, product, weighted / self.batch.total, scales, kept))
        return logsumexp, own, self._gradients(grads, grad_private, sum_weighted)

    def blocks(self, logsumexp: Tensor, kept: torch.dtype) -> list[Tensor]:
        """Gradients in dtype `kept` where logsumexp [dims, N] is given; 3 products.

        Candidates are finished block by block; the sums of all blocks are kept for the queries, which are fewer.
        """
        kernels, scales = self.kernels, self._scales()
        rows, columns = workspace.blocks(self.problem)
        buffer = self._buffer(rows, [columns])
        chunks = list(self._chunks(rows))
        for chunk in chunks:
            chunk.logsumexp = logsumexp[:, chunk.rows].contiguous()
        product, begun = kernels.empty(len(self.queries), self.width), False
        grads, grad_private = [], self._private_gradient(kept)
        for source in self.sources:
            grads.append(kernels.empty(len(source.vectors), self.width, dtype=kept))
            for start in range(0, len(source.vectors), columns):
                block = source.vectors.part(start, start + columns, kernels.tile)
                block_product = kernels.empty(len(block), self.width)
                weighted = kernels.zeros(len(self.segments), len(block))
                for chunk in chunks:
                    partials = kernels.partials(len(chunk.vectors), kernels.segments(len(block)))
                    weights = self._score(chunk, source, start, columns, partials, 0, buffer)
                    chunk.mean += kernels.combine(partials, None, chunk.logsumexp)[1]
                    weighted += self._differentiate(
                        chunk, block, source.own_column(chunk.start, start), weights, partials, 0, scales,
                        product[chunk.rows], block_product, begun, chunk.start > 0,
                    )  # fmt: skip
                begun = True
                if not chunks:
                    block_product.zero_()
                self._finish(
                    block, block_product, weighted / self.batch.total, scales, grads[-1][start : start + columns]
                )
        if not begun:
            product.zero_()
        weighted = kernels.zeros(len(self.segments), len(self.queries))
        for chunk in chunks:
            if self.private is not None:
                assert chunk.logsumexp is not None
                chunk.private = self.private.score(chunk.vectors, chunk.rows)
                chunk.mean += chunk.private.mean(chunk.logsumexp)
            weighted[:, chunk.rows] = self._row_weights(chunk, scales, product[chunk.rows], grad_private)
        sum_weighted = weighted.sum()
        grads.insert(0, self._finish_in_place(self.queries, product, weighted, scales, kept))
        return self._gradients(grads, grad_private, sum_weighted)

    def _scales(self) -> Scales:
        factors, total = self.batch.weights, self.batch.total
        tau, weights = self.kernels.temperature, None
        assert tau is not None
        if self.dtype == torch.float16:
            # |H_m| is at most the sum of |w_d| times the largest inverse norms.
            bound = _largest(self.queries.inverse_norms) if len(self.queries) else torch.ones_like(tau)
            candidates = [_largest(source.vectors.inverse_norms) for source in self.sources if len(source.vectors)]
            bound = bound * torch.stack([torch.ones_like(tau), *candidates]).amax() * sum(map(abs, factors))
            weights = FP16_LARGEST_WEIGHT / torch.where(bound > 0, bound, 1)
        products = 1 / (tau * total)
        return Scales(factors, total, weights, products if weights is None else products / weights)

    def _buffer(self, rows: int, columns: Sequence[int]) -> Tensor:
        """Room for the weights of so many rows, or all if they are fewer, with each of so many columns."""
        widths = [padded(count, self.kernels.tile) for count in columns]
        return self.kernels.empty(len(self.segments) * min(rows, len(self.queries)) * sum(widths), dtype=self.dtype)

    def _all_segments(self) -> int:
        return sum(self.kernels.segments(count) for count in self.problem.columns)

    def _private_gradient(self, kept: torch.dtype) -> Tensor | None:
        if self.batch.private is None:
            return None
        return self.kernels.empty(*self.batch.private.shape[:2], self.width, dtype=kept)

    def _chunks(self, size: int) -> Iterator[Chunk]:
        for start in range(0, len(self.queries), size):
            part = self.queries.part(start, start + size, self.kernels.tile)
            own, mean = (self.kernels.zeros(len(self.segments), len(part)) for _ in range(2))
            yield Chunk(start, part, own, mean)

    def _score(
        self,
        chunk: Chunk,
        source: Source,
        start: int,
        columns: int,
        partials: Tensor,
        first_segment: int,
        buffer: Tensor | None,
    ) -> Tensor:
        """Scores of a block: its partial sums, and its weights in the returned part of `buffer`, if there is one.

        They are relative to the chunk's logsumexp where that is known.
        """
        block = source.vectors.part(start, start + columns, self.kernels.tile)
        weights = self.kernels.empty(0)
        if buffer is not None:
            shape = (len(self.segments), len(chunk.vectors), padded(len(block), self.kernels.tile))
            weights = buffer[: shape[0] * shape[1] * shape[2]].view(shape)
        if self.dtype == torch.float32:
            for m, (low, high) in enumerate(self.segments):
                left, right = chunk.vectors.features[:, low:high], block.features[:, low:high]
                multiply(weights[m, :, : len(block)], left, right.T, add=False)
        self.kernels.scores(
            chunk.vectors, block, source.own_column(chunk.start, start), chunk.own, partials, first_segment,
            chunk.logsumexp, None if buffer is None else weights,
        )  # fmt: skip
        return weights

    def _combine(self, chunk: Chunk, partials: Tensor) -> tuple[Tensor, Tensor]:
        """(logsumexp, mean) of the chunk over all candidates, whose partial sums are there; scores the private ones."""
        if self.private is not None:
            chunk.private = self.private.score(chunk.vectors, chunk.rows)
        return self.kernels.combine(partials, None if chunk.private is None else chunk.private.scores, None)

    def _differentiate(
        self,
        chunk: Chunk,
        block: Vectors,
        own_column: int | None,
        weights: Tensor,
        partials: Tensor,
        first_segment: int,
        scales: Scales,
        product: Tensor,
        block_product: Tensor,
        add: bool,
        add_block: bool,
    ) -> Tensor:
        """The products H C of the rows and H^T Q of the block, written or added to what is there.

        Returns sum_i G_ij s_ij total [dims, columns].
        """
        assert chunk.logsumexp is not None
        sums = self.kernels.gradient_weights(
            weights, chunk.vectors, block, own_column, chunk.own, partials, first_segment, chunk.logsumexp,
            scales.factors, scales.weights,
        )  # fmt: skip
        for m, (low, high) in enumerate(self.segments):
            operand = weights[m, :, : len(block)]
            multiply(product[:, low:high], operand, block.features[:, low:high], add=add)
            multiply(block_product[:, low:high], operand.T, chunk.vectors.features[:, low:high], add=add_block)
        return sums

    def _row_weights(self, chunk: Chunk, scales: Scales, product: Tensor, grad_private: Tensor | None) -> Tensor:
        """sum_j G_ij s_ij [dims, rows]. Also writes the private negatives' gradients, adds their part to product."""
        if self.private is not None and grad_private is not None:
            assert chunk.logsumexp is not None and chunk.private is not None
            self.private.differentiate(
                chunk.vectors, chunk.rows, chunk.private, chunk.logsumexp, scales.factors, scales.total, scales.weights,
                scales.products, product, grad_private[chunk.rows],
            )  # fmt: skip
        weighted = chunk.mean - chunk.own * LN2
        for m, factor in enumerate(scales.factors):
            weighted[m] *= factor / scales.total
        return weighted

    def _finish(self, vectors: Vectors, product: Tensor, weighted: Tensor, scales: Scales, out: Tensor) -> None:
        """Takes the norms' part off; weighted [dims, n] is sum G s of each vector. out may be product."""
        self.kernels.finish(product, vectors, norm_part(vectors, weighted), scales.products, out)

    def _finish_in_place(
        self, vectors: Vectors, product: Tensor, weighted: Tensor, scales: Scales, kept: torch.dtype
    ) -> Tensor:
        """The same in the product's own memory: sums of a large batch's gradients are the largest tensors there are."""
        part_of_norms = norm_part(vectors, weighted)
        if kept == torch.float32:
            self.kernels.finish(product, vectors, part_of_norms, scales.products, product)
            return product
        # Row r in 16 bits lies where row r / 2 was in 32. Twice as many rows each time, so that it has been read.
        out, start, stop = product.view(-1).view(kept)[: product.numel()].view(product.shape), 0, 1
        while start < len(vectors):
            rows = slice(start, stop)
            part = vectors.part(start, stop, self.kernels.tile)
            self.kernels.finish(product[rows], part, part_of_norms[:, rows], scales.products, out[rows])
            start, stop = stop, 2 * stop
        return out

    def _gradients(self, grads: list[Tensor], grad_private: Tensor | None, sum_weighted: Tensor) -> list[Tensor]:
        """Of queries, positives, shared, private negatives and temperature, as the caller knows them."""
        features = [*grads, *[self.kernels.empty(0, dtype=grads[0].dtype) for _ in range(3 - len(grads))]]
        features.append(self.kernels.empty(0, dtype=grads[0].dtype) if grad_private is None else grad_private)
        # Columns that pad come off: a copy, but only for sizes that are no multiple of 8.
        features = [grad[..., : self.queries.size].contiguous() if grad.dim() > 1 else grad for grad in features]
        assert self.kernels.temperature is not None
        return [*features, (-sum_weighted / self.kernels.temperature).to(self.batch.temperature)]


def norm_part(vectors: Vectors, weighted: Tensor) -> Tensor:
    """[dims, n]: how much of a vector itself its gradient has in the columns that each prefix adds."""
    return suffix_sums(weighted * vectors.inverse_norms[:, : len(vectors)].square())


def _largest(inverse_norms: Tensor) -> Tensor:
    """The largest of those that are numbers: NaN stays in its vector."""
    return inverse_norms.nan_to_num(nan=0.0, posinf=0.0).amax()


def _on_device(temperature: Tensor, device: torch.device) -> Tensor:
    """The temperature as float32 on `device`; one that is on the host is checked."""
    if temperature.device.type == "cpu":
        value = float(temperature)
        _checks.temperature_value(value)
        if device.type != "cpu":
            return torch.full((), value, dtype=torch.float32, device=device)
    return temperature.to(torch.float32)
