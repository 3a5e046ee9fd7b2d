"""What is known of each kernel besides the compiler's report: its purpose, its operation, its useful work.

The work is read off the kernels in csrc/: the kernel's own GEMMs, and its inputs and outputs, once each. Repeated
passes through the L2 cache do not count, nor do the few FLOP for each score outside the GEMMs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.attention.cases import Case as AttentionCase
from benchmarks.contrastive.cases import Case as ContrastiveCase
from benchmarks.explain.resources import Kernel
from benchmarks.explain.shapes import constants, padded_columns, whole_rows
from benchmarks.roofline import Work

ELEMENT_SIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
FLOAT32 = 4  # bytes
TILE_ROWS = 128  # query rows of an attention tile that schedule_tiles lists, with 16 bytes each

Case = AttentionCase | ContrastiveCase


class Operation(NamedTuple):
    """What is measured: one call that starts several kernels. suite, implementation, part: as in result files."""

    name: str
    suite: str
    implementation: str
    part: str


WITHOUT_DQ = "deterministic attention backward (row_delta, sm80_backward without dQ, sm80_backward_dq)"
KERNELS = "prefix_norms, sm80_scores, combine_partials, gradient_weights, finish_gradient, the library's GEMMs"
FORWARD = Operation("attention forward, this kernel alone", "attention", "ours", "forward")
BACKWARD = Operation("attention backward (row_delta, sm80_backward)", "attention", "ours", "backward")
DETERMINISTIC = Operation(WITHOUT_DQ, "attention", "ours_deterministic", "backward")
INFO_NCE = Operation(f"InfoNCE, loss and gradients ({KERNELS})", "contrastive", "ours", "both")


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


def element_size(kernel: Kernel) -> int:
    return ELEMENT_SIZE.get(kernel.dtype or "bf16", 2)


def _rows(case: AttentionCase) -> int:
    """Query rows of all heads."""
    return case.batch * case.heads * case.length


def _attention(gemms: int, query: int, key: int, rows: int, float32_query: int = 0) -> Callable[..., Work]:
    """Moved: tensors with query heads (q, out, dout, dq), with K/V heads (k, v, dk, dv), float32 ones with query heads;
    rows: float32 elements for each query row (logsumexp, delta)."""

    def work(kernel: Kernel, case: AttentionCase) -> Work:
        elements = case.batch * case.length * case.head_dim
        moved = element_size(kernel) * (query * case.heads + key * case.kv_heads) * elements
        moved += FLOAT32 * (float32_query * case.heads * elements + rows * _rows(case))
        return Work(gemms * 2.0 * _rows(case) * case.length * case.head_dim, float(moved))

    return work


class Sizes:
    """Of the contrastive kernels' tensors. elements: of all vectors. scores: of all prefixes, padded columns included.

    own: hard negatives of all queries, for the private_* kernels candidates of their own query alone. Others: bytes.
    """

    def __init__(self, kernel: Kernel, case: ContrastiveCase) -> None:
        prefixes, vectors, self.dim = len(case.dims), case.pairs + case.candidates, case.dims[-1]
        self.element = element_size(kernel)
        self.gradient = 4 if kernel.arguments[-1:] == ("Fp32",) else 2  # of the gradients of <features, gradients>
        self.elements = vectors * self.dim
        self.scores = prefixes * case.pairs * padded_columns(case)
        self.gemm = 2.0 * case.pairs * case.candidates * self.dim  # FLOP
        self.vectors = self.element * self.elements
        self.norms = FLOAT32 * prefixes * vectors
        self.partials = 3 * FLOAT32 * self.scores / constants().contrastive_segment
        self.column_sums = FLOAT32 * self.scores / constants().contrastive_group_rows
        self.kept = self.element * self.scores * (kernel.arguments[-1:] == ("true",))  # weights
        self.rows = FLOAT32 * prefixes * case.pairs  # one float32 for each row and prefix
        self.pairs, self.own = case.pairs, case.pairs * case.negatives
        self.own_scores = FLOAT32 * prefixes * self.own
        self.private = self.element * (self.pairs + self.own) * self.dim  # queries and their own negatives


def _backward_note(kernel: Kernel, case: AttentionCase) -> str:
    keys = next((int(number) for number in kernel.arguments[2:3] if number.isdigit()), 0)
    if not keys:
        return ""
    added = FLOAT32 * _rows(case) * case.head_dim * -(-case.length // keys)
    text = f"every block of {keys} keys adds to all of dQ in float32"
    return f"{text}: {added / 1e9:,.1f} GB of red.add through the L2 cache, not counted above"


def _scores_note(kernel: Kernel, case: ContrastiveCase) -> str:
    rows, kept = whole_rows(case, element_size(kernel)), kernel.arguments[-1] == "true"
    if rows is None:
        return f"InfoNCE goes in blocks here: {'the second' if kept else 'the first'} of two passes over all scores"
    if kept:
        return f"InfoNCE goes in whole rows here, {rows:,} queries and all candidates in a launch"
    return "InfoNCE goes in whole rows here: this variant does not run (only for a loss without gradients)"


def _private_note(kernel: Kernel, case: ContrastiveCase) -> str:
    return "" if case.negatives else "nothing to do at K=0: give --negatives"


def _of_attention(
    purpose: str, work: Callable[..., Work], *operations: Operation, note: Callable[..., str] = lambda *_: ""
) -> Family:
    return Family(purpose, "attention", lambda kernel, case: {"": work(kernel, case)}, operations, note)


def _of_info_nce(purpose: str, work: Callable[[Sizes], Work], *operations: Operation, **more: Any) -> Family:
    purpose = f"InfoNCE{purpose}"
    return Family(purpose, "contrastive", lambda *of: {"": work(Sizes(*of))}, operations, **more)


_with_dq, _without_dq = _attention(5, 2, 4, 2, float32_query=2), _attention(4, 2, 4, 2)
# Comments say what moves, if the purpose does not. sm80_backward sums dQ in float32: it is read and written.
FAMILIES = {
    "sm80_forward": _of_attention(
        "attention forward, 128 query rows of a head in a block: S = Q K^T, O += P V",
        _attention(2, 2, 2, 1), FORWARD,  # q, k, v in, out and logsumexp out
    ),
    "sm80_backward": Family(
        "attention backward, 128 or 64 keys of a K/V head in a block: dK, dV, and dQ by atomic additions", "attention",
        lambda *of: {"with dQ": _with_dq(*of), "deterministic, without dQ": _without_dq(*of)},
        (BACKWARD, DETERMINISTIC), _backward_note,
    ),
    "sm80_backward_dq": _of_attention(
        "deterministic attention backward, 64 query rows of a head in a block: dQ alone",
        _attention(3, 3, 2, 2), DETERMINISTIC,  # S, dP and dQ
    ),
    "row_delta": _of_attention(
        "before attention backward: rowsum(dO O)",
        lambda *of: Work(2.0 * _rows(of[1]) * of[1].head_dim, _attention(0, 2, 0, 1)(*of).bytes),
        BACKWARD, DETERMINISTIC,
    ),
    "schedule_tiles": _of_attention(
        "before attention of a packed batch: lists its tiles, those of the longest sequences first; clears unused rows",
        lambda _, c: Work(0.0, 4.0 * (c.batch + 1) + 16.0 * c.batch * -(-c.length // TILE_ROWS)),
    ),
    "prefix_norms": _of_info_nce(
        ": 1 / norm of every prefix of every vector", lambda s: Work(2.0 * s.elements, s.vectors + s.norms), INFO_NCE
    ),
    "sm80_scores": _of_info_nce(  # vectors and norms in; partial sums, scores of own positives and kept weights out
        ", 128 queries x 128 candidates a block: scores of all prefixes, partial sums, weights (<true>: kept)",
        lambda s: Work(s.gemm, s.vectors + s.norms + s.partials + s.kept + s.rows), INFO_NCE, note=_scores_note,
    ),
    "product_scores": _of_info_nce(  # GEMM results in, weights out in their place
        " of float32 features: the same from the library's GEMMs",
        lambda s: Work(0.0, 2.0 * FLOAT32 * s.scores + s.norms + s.partials),
    ),
    "combine_partials": _of_info_nce(
        ": from partial sums to logsumexp and mean score of each row and prefix",
        lambda s: Work(0.0, s.partials + 2.0 * s.rows), INFO_NCE,
    ),
    "gradient_weights": _of_info_nce(  # references and norms in, a sum for each group of rows out
        ": from weights to the operands of the gradient's GEMMs, in place",
        lambda s: Work(0.0, 2.0 * s.element * s.scores + s.partials / 3 + s.norms + 2 * s.rows + s.column_sums),
        INFO_NCE, shared_per_prefix=True,
    ),
    "finish_gradient": _of_info_nce(  # GEMM results in float32, vectors and the norms' part in, gradients out
        ": subtracts the norms' part from the GEMM results, <features, gradients>",
        lambda s: Work(3.0 * s.elements, (FLOAT32 + s.element + s.gradient) * s.elements + s.norms), INFO_NCE,
    ),
    "private_scores": _of_info_nce(  # a score and a norm for each prefix out
        ", hard negatives of one query each: scores",
        lambda s: Work(4.0 * s.own * s.dim, s.private + s.rows + 2.0 * s.own_scores), note=_private_note,
    ),
    "private_gradients": _of_info_nce(  # weights and norms' parts in too; adds to the queries' gradients
        ", hard negatives of one query each: gradients, <features, gradients>",
        lambda s: Work(
            5.0 * s.own * s.dim,
            s.private + 2.0 * s.own_scores + s.gradient * s.own * s.dim + 2.0 * FLOAT32 * s.pairs * s.dim,
        ), note=_private_note,
    ),
}  # fmt: skip
