"""How InfoNCE by kernels is cut into rows of queries and columns of candidates, so that the workspace is bounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .launch import padded

# Bound on everything but inputs, gradients and O(N + M) statistics.
WORKSPACE_BYTES = 256 << 20
# Whole rows are taken if at least so many fit. Each chunk of R rows reads and writes the sum of the candidates'
# gradients once, 8 bytes for 6 R FLOP: at 4.3 TB/s and 770 TFLOP/s that is 23 % more time at R = 1,024, and blocks,
# with a product more, take 33 % more. Arithmetic, not measured.
MIN_WHOLE_ROWS = 1024
# float32 statistics pass their products through the workspace; more rows would leave too few columns.
MAX_PRODUCT_ROWS = 4096
MAX_COLUMNS = 1 << 20  # of a launch: tiles of columns are counted by a grid's second dimension, up to 65,535


@dataclass(frozen=True)
class Problem:
    """What the sizes follow from. element: bytes of a feature; width: columns of a gradient."""

    rows: int
    columns: Sequence[int]  # of each set of shared candidates
    dims: int
    element: int
    width: int
    private: int  # hard negatives of a row
    tile: int
    segment: int

    def weight_bytes(self, columns: int) -> int:
        """Of a row: weights, partial sums (3 numbers a segment), its part of the column sums (a number per 32 rows)."""
        columns = padded(columns, self.tile)
        return self.dims * (columns * self.element + 12 * columns // self.segment + columns // 8)

    @property
    def private_bytes(self) -> int:
        """Of a row: about 8 numbers per hard negative and prefix."""
        return 32 * self.dims * self.private


def whole_rows(problem: Problem) -> int | None:
    """How many rows fit with the weights of all candidates; None if these are too few for that way."""
    row = sum(map(problem.weight_bytes, problem.columns)) + 4 * problem.width + problem.private_bytes
    fit = _fit(WORKSPACE_BYTES // row, problem.tile)
    return fit if fit >= min(problem.rows, MIN_WHOLE_ROWS) else None


def blocks(problem: Problem) -> tuple[int, int]:
    """(rows, columns), about as many of each: each block reads and writes the sums of its rows and its columns."""
    rows = padded(max(1, problem.rows), problem.tile)
    columns = min(padded(max(1, *problem.columns), problem.tile), MAX_COLUMNS)
    while (rows, columns) != (problem.tile, problem.tile):
        size = rows * (problem.weight_bytes(columns) + problem.private_bytes) + 4 * problem.width * columns
        if size <= WORKSPACE_BYTES:
            break
        if rows >= columns:
            rows = max(problem.tile, _fit(rows * 7 // 8, problem.tile))
        else:
            columns = max(problem.tile, _fit(columns * 7 // 8, problem.tile))
    return rows, columns


def statistics(problem: Problem) -> tuple[int, int]:
    """(rows, columns) of the pass that keeps nothing but partial sums, and for float32 the products on their way."""
    row = sum(12 * problem.dims * padded(columns, problem.tile) // problem.segment for columns in problem.columns)
    row += problem.private_bytes
    if problem.element < 4:
        return _fit(WORKSPACE_BYTES // max(1, row), problem.tile), min(max(1, *problem.columns), MAX_COLUMNS)
    rows = min(_fit(WORKSPACE_BYTES // max(1, 4 * row), problem.tile), MAX_PRODUCT_ROWS)
    columns = WORKSPACE_BYTES * 3 // 4 // (4 * problem.dims * max(1, min(rows, problem.rows)))
    return rows, max(problem.tile, _fit(columns, problem.tile))


def _fit(count: int, tile: int) -> int:
    """Whole tiles, or less than one if no whole one fits."""
    return max(1, count if count < tile else count // tile * tile)
