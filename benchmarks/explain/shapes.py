"""The sizes for which a kernel's floor is worked out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.contrastive.shape import PAPER
from conan_fast.contrastive.kernel_backend import workspace

PAPER_DIMS = PAPER[3584]
# csrc/contrastive/params.h: kTile, kSegment, kGroupRows, kMaxPrefixes.
TILE, SEGMENT, GROUP_ROWS, MAX_PREFIXES = 128, 64, 32, 32


def ceil_to(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


@dataclass(frozen=True)
class AttentionShape:
    batch: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def rows(self) -> int:
        """Query rows of all heads."""
        return self.batch * self.heads * self.length

    @property
    def case(self) -> dict[str, Any]:
        """As result files have it."""
        return {name: getattr(self, name) for name in ("batch", "length", "head_dim", "heads", "kv_heads")}

    def __str__(self) -> str:
        return f"B={self.batch} L={self.length:,} H={self.heads}/{self.kv_heads} D={self.head_dim}"


@dataclass(frozen=True)
class ContrastiveShape:
    """N pairs with K hard negatives each, shared by all queries (M = N (1 + K) candidates), or, for the private_*
    kernels, candidates of their own query alone."""

    pairs: int
    negatives: int
    dim: int
    dims: tuple[int, ...]

    @property
    def candidates(self) -> int:
        return self.pairs * (1 + self.negatives)

    @property
    def columns(self) -> int:
        """Candidates, positives and negatives each padded to whole tiles."""
        return ceil_to(self.pairs, TILE) + ceil_to(self.pairs * self.negatives, TILE)

    @property
    def case(self) -> dict[str, Any]:
        return {"pairs": self.pairs, "negatives": self.negatives, "dim": self.dim, "dims": list(self.dims)}

    def whole_rows(self, element_size: int) -> int | None:
        """How many rows go together with all candidates; None: the work goes in blocks, with a fourth product."""
        columns = [self.pairs, *([self.pairs * self.negatives] if self.negatives else [])]
        sizes = workspace.Sizes(
            rows=self.pairs, columns=columns, dims=len(self.dims), element=element_size,
            width=ceil_to(self.dim, 8), private=0, tile=TILE, segment=SEGMENT,
        )  # fmt: skip
        return workspace.whole_rows(sizes)

    def __str__(self) -> str:
        return f"N={self.pairs:,} K={self.negatives} D={self.dim:,} dims={','.join(map(str, self.dims))}"


Shape = AttentionShape | ContrastiveShape
