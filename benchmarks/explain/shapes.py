"""The sizes for which a kernel's roofline time is computed, and the constants of the compiled module."""

from types import ModuleType

from benchmarks.contrastive.cases import Case
from benchmarks.explain.occupancy import ceil_to
from conan_fast import _native
from conan_fast.contrastive.kernel_backend import workspace


def constants() -> ModuleType:
    """The compiled module, whose attributes include the kernels' compile-time constants."""
    return _native.module("cuda")


def padded_columns(case: Case) -> int:
    """Candidates, positives and negatives each padded to whole tiles."""
    tile = constants().contrastive_tile
    return ceil_to(case.pairs, tile) + ceil_to(case.pairs * case.negatives, tile)


def whole_rows(case: Case, element_size: int) -> int | None:
    """How many rows go together with all candidates; None: the work goes in blocks, with a fourth GEMM."""
    columns = [case.pairs, *([case.pairs * case.negatives] if case.negatives else [])]
    tile, segment, width = constants().contrastive_tile, constants().contrastive_segment, ceil_to(case.dim, 8)
    sizes = workspace.Sizes(case.pairs, columns, len(case.dims), element_size, width, 0, tile, segment)
    return workspace.whole_rows(sizes)
