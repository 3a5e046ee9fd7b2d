"""What is known of each kernel beyond what the compiler says: what it does, for which operation, and its floor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.explain import work
from benchmarks.explain.resources import Kernel
from benchmarks.explain.shapes import MAX_PREFIXES, AttentionShape, ContrastiveShape, Shape
from benchmarks.floors import Work, attention_work, info_nce_work


@dataclass(frozen=True)
class Operation:
    """What is measured: one call that starts several kernels. suite, implementation, part: as result files have it."""

    name: str
    suite: str
    implementation: str
    part: str

    def work(self, shape: Shape) -> Work:
        """The useful work of the whole operation in 16 bits."""
        if isinstance(shape, AttentionShape):
            return attention_work(part=self.part, **shape.case)
        return info_nce_work(pairs=shape.pairs, candidates=shape.candidates, dim=shape.dims[-1])


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
    " library's products)",
    "contrastive",
    "ours",
    "both",
)


def _no_note(kernel: Kernel, shape: Any) -> str:
    return ""


@dataclass(frozen=True)
class Family:
    """All instances of one kernel template. floor and note take a kernel and a shape of the suite.

    operations: those whose measured time says something of the kernel.
    """

    purpose: str
    suite: str
    floor: Callable[[Kernel, Any], dict[str, Work]]
    operations: tuple[Operation, ...] = ()
    note: Callable[[Kernel, Any], str] = _no_note
    shared_per_prefix: bool = False  # the build notes the dynamic shared memory for MAX_PREFIXES

    def dynamic_shared(self, kernel: Kernel, shape: Shape) -> int:
        """Bytes of a block as the kernel is started at this shape."""
        if self.shared_per_prefix and isinstance(shape, ContrastiveShape):
            return kernel.dynamic_shared * len(shape.dims) // MAX_PREFIXES
        return kernel.dynamic_shared


def _backward_note(kernel: Kernel, shape: AttentionShape) -> str:
    keys = next((int(number) for number in kernel.arguments[2:3] if number.isdigit()), 0)
    if not keys:
        return ""
    added = work.tensors(shape, query=1, key=0, size=4) * -(-shape.length // keys)
    return (
        f"every block of {keys} keys adds to all of dQ in float32: {added / 1e9:,.1f} GB of red.add through the L2"
        " cache, which the floor leaves out"
    )


def _scores_note(kernel: Kernel, shape: ContrastiveShape) -> str:
    rows, kept = shape.whole_rows(work.element_size(kernel)), kernel.arguments[-1] == "true"
    if rows is None:
        return f"InfoNCE goes in blocks here: {'the second' if kept else 'the first'} of two passes over all scores"
    if kept:
        return f"InfoNCE goes in whole rows here, {rows:,} queries and all candidates a launch"
    return "InfoNCE goes in whole rows here, where this variant does not run (it does for a loss without gradients)"


def _private_note(kernel: Kernel, shape: ContrastiveShape) -> str:
    return "" if shape.negatives else "nothing to do at K=0: give --negatives"


FAMILIES = {
    "sm80_forward": Family(
        "attention forward, 128 query rows of a head a block: S = Q K^T, O += P V",
        "attention", work.forward, (FORWARD,),
    ),
    "sm80_backward": Family(
        "attention backward, 128 or 64 keys of a K/V head a block: dK, dV, and dQ by atomic additions",
        "attention", work.backward, (BACKWARD, DETERMINISTIC), _backward_note,
    ),
    "sm80_backward_dq": Family(
        "deterministic attention backward, 64 query rows of a head a block: dQ alone",
        "attention", work.backward_dq, (DETERMINISTIC,),
    ),
    "row_delta": Family(
        "before attention backward: rowsum(dO O)", "attention", work.row_delta, (BACKWARD, DETERMINISTIC)
    ),
    "schedule_tiles": Family(
        "before attention of a packed batch: lists its tiles, those of the longest sequences first",
        "attention", work.schedule_tiles,
    ),
    "prefix_norms": Family(
        "InfoNCE: 1 / norm of every prefix of every vector", "contrastive", work.prefix_norms, (INFO_NCE,)
    ),
    "sm80_scores": Family(
        "InfoNCE, 128 queries x 128 candidates a block: scores of all prefixes, partial sums, weights (<true>: kept)",
        "contrastive", work.scores, (INFO_NCE,), _scores_note,
    ),
    "product_scores": Family(
        "InfoNCE of float32 features: the same from the library's products", "contrastive", work.product_scores
    ),
    "combine_partials": Family(
        "InfoNCE: from partial sums to logsumexp and mean score of each row and prefix",
        "contrastive", work.combine, (INFO_NCE,),
    ),
    "gradient_weights": Family(
        "InfoNCE: from weights to the operands of the gradient's products, in place",
        "contrastive", work.gradient_weights, (INFO_NCE,), shared_per_prefix=True,
    ),
    "finish_gradient": Family(
        "InfoNCE: takes the norms' part off the products, <features, gradients>",
        "contrastive", work.finish_gradient, (INFO_NCE,),
    ),
    "private_scores": Family(
        "InfoNCE, hard negatives of one query each: scores", "contrastive", work.private_scores, note=_private_note
    ),
    "private_gradients": Family(
        "InfoNCE, hard negatives of one query each: gradients, <features, gradients>",
        "contrastive", work.private_gradients, note=_private_note,
    ),
}  # fmt: skip
