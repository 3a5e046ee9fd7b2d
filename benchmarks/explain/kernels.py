"""What is known of each kernel besides the compiler's report: its purpose, its operation, its useful work.

The work is read off the kernels in csrc/: the kernel's own GEMMs, and its inputs and outputs, once each. Repeated
passes through the L2 cache do not count, nor do the few FLOP for each score outside the GEMMs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.attention.cases import Case as AttentionCase
from benchmarks.contrastive.cases import Case as ContrastiveCase
from benchmarks.explain.resources import Kernel
from benchmarks.explain.shapes import constants, padded_columns, whole_rows
from benchmarks.roofline import Work

ELEMENT_SIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
FLOAT32 = 4  # bytes
TILE_ROWS = 128  # query rows of an attention tile that schedule_tiles lists, with 16 bytes each

Case = AttentionCase | ContrastiveCase


@dataclass(frozen=True)
class Operation:
    """What is measured: one call that starts several kernels. suite, implementation, part: as in result files."""

    name: str
    suite: str
    implementation: str
    part: str


FORWARD = Operation("attention forward, this kernel alone", "attention", "ours", "forward")
BACKWARD = Operation("attention backward (row_delta, sm80_backward)", "attention", "ours", "backward")
DETERMINISTIC = Operation(
    "deterministic attention backward (row_delta, sm80_backward without dQ, sm80_backward_dq)",
    "attention",
    "ours_deterministic",
    "backward",
)
INFO_NCE = Operation(
    "InfoNCE, loss and gradients (prefix_norms, sm80_scores, combine_partials, gradient_weights, finish_gradient, the"
    " library's GEMMs)",
    "contrastive",
    "ours",
    "both",
)


@dataclass(frozen=True)
class Family:
    """All instances of one kernel template. work: by variant of the call, "" if there is one only.

    operations: those whose measured time tells something about the kernel.
    """

    purpose: str
    suite: str
    work: Callable[[Kernel, Any], dict[str, Work]]
    operations: tuple[Operation, ...] = ()
    note: Callable[[Kernel, Any], str] = lambda kernel, case: ""
    shared_per_prefix: bool = False  # the build notes the dynamic shared memory for the largest number of prefixes

    def dynamic_shared(self, kernel: Kernel, case: Case) -> int:
        """Bytes of a block as the kernel is started for this case."""
        if self.shared_per_prefix and isinstance(case, ContrastiveCase):
            return kernel.dynamic_shared * len(case.dims) // constants().max_prefixes
        return kernel.dynamic_shared


def _rows(case: AttentionCase) -> int:
    """Query rows of all heads."""
    return case.batch * case.heads * case.length


def _attention(gemms: int, query: int, key: int, rows: int, float32_query: int = 0) -> Callable[..., Work]:
    """Moved: tensors with query heads (q, out, dout, dq), with K/V heads (k, v, dk, dv), float32 ones with query heads;
    rows: float32 elements for each query row (logsumexp, delta)."""

    def work(kernel: Kernel, case: AttentionCase) -> Work:
        elements = case.batch * case.length * case.head_dim
        moved = ELEMENT_SIZE.get(kernel.dtype or "bf16", 2) * (query * case.heads + key * case.kv_heads) * elements
        moved += FLOAT32 * (float32_query * case.heads * elements + rows * _rows(case))
        return Work(gemms * 2.0 * _rows(case) * case.length * case.head_dim, float(moved))

    return work


def _one(work: Callable[..., Work]) -> Callable[[Kernel, Any], dict[str, Work]]:
    return lambda kernel, case: {"": work(kernel, case)}


_with_dq, _without_dq = _attention(5, 2, 4, 2, float32_query=2), _attention(4, 2, 4, 2)
_moved_by_row_delta = _attention(0, 2, 0, 1)


def _backward(kernel: Kernel, case: AttentionCase) -> dict[str, Work]:
    """dQ is summed in float32, so read and written; in the deterministic mode a kernel of its own makes it."""
    return {"with dQ": _with_dq(kernel, case), "deterministic, without dQ": _without_dq(kernel, case)}


class Sizes:
    """Of the contrastive kernels' tensors. elements: of all vectors. scores: of all prefixes, padded columns included.

    own: hard negatives of all queries, for the private_* kernels candidates of their own query alone. Others: bytes.
    """

    def __init__(self, kernel: Kernel, case: ContrastiveCase) -> None:
        prefixes, vectors, self.dim = len(case.dims), case.pairs + case.candidates, case.dims[-1]
        self.element = ELEMENT_SIZE.get(kernel.dtype or "bf16", 2)
        self.gradient = 4 if kernel.arguments[-1:] == ("Fp32",) else 2  # of the gradients of <features, gradients>
        self.elements = vectors * self.dim
        self.scores = prefixes * case.pairs * padded_columns(case)
        self.gemm = 2.0 * case.pairs * case.candidates * self.dim  # FLOP
        self.vectors = self.element * self.elements
        self.norms = FLOAT32 * prefixes * vectors
        self.partials = 3 * FLOAT32 * self.scores / constants().contrastive_segment
        self.rows = FLOAT32 * prefixes * case.pairs  # one float32 for each row and prefix
        self.pairs, self.own = case.pairs, case.pairs * case.negatives
        self.own_scores = FLOAT32 * prefixes * self.own


def _info_nce(work: Callable[[Sizes], Work]) -> Callable[[Kernel, Any], dict[str, Work]]:
    return lambda kernel, case: {"": work(Sizes(kernel, case))}


def _scores(kernel: Kernel, case: ContrastiveCase) -> dict[str, Work]:
    """Vectors and norms in; partial sums, scores of own positives and, if kept, weights out."""
    s = Sizes(kernel, case)
    kept = s.element * s.scores if kernel.arguments[-1] == "true" else 0
    return {"": Work(s.gemm, s.vectors + s.norms + s.partials + kept + s.rows)}


def _gradient_weights(s: Sizes) -> Work:
    """Weights in and, in their place, operands out; references and norms in, a sum for each group of rows out."""
    sums = FLOAT32 * s.scores / constants().contrastive_group_rows
    return Work(0.0, 2.0 * s.element * s.scores + s.partials / 3 + s.norms + 2 * s.rows + sums)


def _private_gradients(s: Sizes) -> Work:
    """Queries, negatives, weights and norms' parts in, gradients of the negatives out; added to the queries'."""
    read = s.element * (s.pairs + s.own) * s.dim + 2.0 * s.own_scores
    return Work(5.0 * s.own * s.dim, read + s.gradient * s.own * s.dim + 2.0 * FLOAT32 * s.pairs * s.dim)


def _backward_note(kernel: Kernel, case: AttentionCase) -> str:
    keys = next((int(number) for number in kernel.arguments[2:3] if number.isdigit()), 0)
    if not keys:
        return ""
    added = FLOAT32 * _rows(case) * case.head_dim * -(-case.length // keys)
    return (
        f"every block of {keys} keys adds to all of dQ in float32: {added / 1e9:,.1f} GB of red.add through the L2"
        " cache, not counted above"
    )


def _scores_note(kernel: Kernel, case: ContrastiveCase) -> str:
    rows, kept = whole_rows(case, ELEMENT_SIZE.get(kernel.dtype or "bf16", 2)), kernel.arguments[-1] == "true"
    if rows is None:
        return f"InfoNCE goes in blocks here: {'the second' if kept else 'the first'} of two passes over all scores"
    if kept:
        return f"InfoNCE goes in whole rows here, {rows:,} queries and all candidates in a launch"
    return "InfoNCE goes in whole rows here: this variant does not run (only for a loss without gradients)"


def _private_note(kernel: Kernel, case: ContrastiveCase) -> str:
    return "" if case.negatives else "nothing to do at K=0: give --negatives"


# The comments say what the work counts, beyond the docstrings above.
FAMILIES = {
    "sm80_forward": Family(
        "attention forward, 128 query rows of a head in a block: S = Q K^T, O += P V",
        "attention", _one(_attention(2, 2, 2, 1)), (FORWARD,),  # q, k, v in, out and logsumexp out
    ),
    "sm80_backward": Family(
        "attention backward, 128 or 64 keys of a K/V head in a block: dK, dV, and dQ by atomic additions",
        "attention", _backward, (BACKWARD, DETERMINISTIC), _backward_note,
    ),
    "sm80_backward_dq": Family(
        "deterministic attention backward, 64 query rows of a head in a block: dQ alone",
        "attention", _one(_attention(3, 3, 2, 2)), (DETERMINISTIC,),  # S, dP and dQ
    ),
    "row_delta": Family(
        "before attention backward: rowsum(dO O)", "attention",
        _one(lambda kernel, case: Work(2.0 * _rows(case) * case.head_dim, _moved_by_row_delta(kernel, case).bytes)),
        (BACKWARD, DETERMINISTIC),
    ),
    "schedule_tiles": Family(
        "before attention of a packed batch: lists its tiles, those of the longest sequences first", "attention",
        _one(lambda _, c: Work(0.0, 4.0 * (c.batch + 1) + 16.0 * c.batch * -(-c.length // TILE_ROWS))),
    ),
    "prefix_norms": Family(
        "InfoNCE: 1 / norm of every prefix of every vector", "contrastive",
        _info_nce(lambda s: Work(2.0 * s.elements, s.vectors + s.norms)), (INFO_NCE,),
    ),
    "sm80_scores": Family(
        "InfoNCE, 128 queries x 128 candidates a block: scores of all prefixes, partial sums, weights (<true>: kept)",
        "contrastive", _scores, (INFO_NCE,), _scores_note,
    ),
    "product_scores": Family(  # GEMM results in, weights out in their place
        "InfoNCE of float32 features: the same from the library's GEMMs", "contrastive",
        _info_nce(lambda s: Work(0.0, 2.0 * FLOAT32 * s.scores + s.norms + s.partials)),
    ),
    "combine_partials": Family(  # out: logsumexp and mean score
        "InfoNCE: from partial sums to logsumexp and mean score of each row and prefix", "contrastive",
        _info_nce(lambda s: Work(0.0, s.partials + 2.0 * s.rows)), (INFO_NCE,),
    ),
    "gradient_weights": Family(
        "InfoNCE: from weights to the operands of the gradient's GEMMs, in place",
        "contrastive", _info_nce(_gradient_weights), (INFO_NCE,), shared_per_prefix=True,
    ),
    "finish_gradient": Family(  # GEMM results in float32, vectors and the norms' part in, gradients out
        "InfoNCE: subtracts the norms' part from the GEMM results, <features, gradients>", "contrastive",
        _info_nce(lambda s: Work(3.0 * s.elements, (FLOAT32 + s.element + s.gradient) * s.elements + s.norms)),
        (INFO_NCE,),
    ),
    "private_scores": Family(  # out: a score and a norm for each prefix
        "InfoNCE, hard negatives of one query each: scores", "contrastive",
        _info_nce(
            lambda s: Work(4.0 * s.own * s.dim, s.element * (s.pairs + s.own) * s.dim + s.rows + 2.0 * s.own_scores)
        ),
        note=_private_note,
    ),
    "private_gradients": Family(
        "InfoNCE, hard negatives of one query each: gradients, <features, gradients>",
        "contrastive", _info_nce(_private_gradients), note=_private_note,
    ),
}  # fmt: skip
