"""How many queries and candidates InfoNCE by kernels takes at once, so that the workspace is bounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .score_block import padded

# Bound on everything but inputs, gradients and O(N + M) statistics.
WORKSPACE_BYTES = 256 << 20
# Whole rows are taken if at least so many fit. Each chunk of R rows reads and writes the sum of the candidates'
# gradients once, 8 bytes for 6 R FLOP: at 4.3 TB/s and 770 TFLOP/s that is 23 % more time at R = 1,024. Blocks need a
# fourth GEMM, 33 % more time. Calculated, not measured.
MIN_WHOLE_ROWS = 1024
# float32 statistics keep their dot products in the workspace; more rows would leave too few columns.
MAX_PRODUCT_ROWS = 4096
MAX_COLUMNS = 1 << 20  # of a launch: tiles of columns are counted by a grid's second dimension, up to 65,535


@dataclass(frozen=True)
class Sizes:
    """The sizes of one call. element: bytes of a feature's element; width: columns of a gradient."""

    rows: int
    columns: Sequence[int]  # of each set of shared candidates
    dims: int
    element: int
    width: int
    private: int  # hard negatives of a row
    tile: int
    segment: int

    def weight_bytes(self, columns: int) -> int:
        """Of a row: weights, partial sums (3 floats a segment), its part of the column sums (a float per 32 rows)."""
        columns = padded(columns, self.tile)
        return self.dims * (columns * self.element + 12 * columns // self.segment + columns // 8)

    @property
    def private_bytes(self) -> int:
        """Of a row: about 8 floats per hard negative and prefix."""
        return 32 * self.dims * self.private


def whole_rows(sizes: Sizes) -> int | None:
    """How many rows fit with the weights of all candidates; None if these are too few."""
    row = sum(map(sizes.weight_bytes, sizes.columns)) + 4 * sizes.width + sizes.private_bytes
    fit = _fit(WORKSPACE_BYTES // row, sizes.tile)
    return fit if fit >= min(sizes.rows, MIN_WHOLE_ROWS) else None


def blocks(sizes: Sizes) -> tuple[int, int]:
    """(rows, columns), about as many of each: each block reads and writes the sums of its rows and its columns."""
    rows = padded(max(1, sizes.rows), sizes.tile)
    columns = min(padded(max(1, *sizes.columns), sizes.tile), MAX_COLUMNS)
    while (rows, columns) != (sizes.tile, sizes.tile):
        size = rows * (sizes.weight_bytes(columns) + sizes.private_bytes) + 4 * sizes.width * columns
        if size <= WORKSPACE_BYTES:
            break
        if rows >= columns:
            rows = max(sizes.tile, _fit(rows * 7 // 8, sizes.tile))
        else:
            columns = max(sizes.tile, _fit(columns * 7 // 8, sizes.tile))
    return rows, columns


def statistics(sizes: Sizes) -> tuple[int, int]:
    """(rows, columns) of the pass that keeps partial sums and, for float32, the dot products of one block."""
    row = sum(12 * sizes.dims * padded(columns, sizes.tile) // sizes.segment for columns in sizes.columns)
    row += sizes.private_bytes
    if sizes.element < 4:
        return _fit(WORKSPACE_BYTES // max(1, row), sizes.tile), min(max(1, *sizes.columns), MAX_COLUMNS)
    rows = min(_fit(WORKSPACE_BYTES // max(1, 4 * row), sizes.tile), MAX_PRODUCT_ROWS)
    columns = WORKSPACE_BYTES * 3 // 4 // (4 * sizes.dims * max(1, min(rows, sizes.rows)))
    return rows, max(sizes.tile, _fit(columns, sizes.tile))


def _fit(count: int, tile: int) -> int:
    """Whole tiles, or less than one if no whole one fits."""
    return max(1, count if count < tile else count // tile * tile)
