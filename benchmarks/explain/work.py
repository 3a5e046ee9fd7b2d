"""What each kernel cannot do without: its own share of the products, and its own inputs and outputs, once each.

Read off the kernels in csrc/. What passes through the L2 cache more than once does not count, nor do the few FLOP a
score that are not products. A result of several entries: the kernel does different work in different calls.
"""

from __future__ import annotations

from benchmarks.explain.resources import Kernel
from benchmarks.explain.shapes import GROUP_ROWS, SEGMENT, AttentionShape, ContrastiveShape
from benchmarks.floors import Work, attention_work

ELEMENT_SIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
STATISTIC = 4  # bytes of a float32


def element_size(kernel: Kernel) -> int:
    return ELEMENT_SIZE.get(kernel.dtype or "bf16", 2)


def gradient_size(kernel: Kernel) -> int:
    """Of the gradients that a kernel <features, gradients> writes."""
    return 4 if kernel.arguments[-1] == "Fp32" else 2


def product(shape: AttentionShape) -> float:
    """FLOP of one of attention's products over all heads."""
    return 2.0 * shape.rows * shape.length * shape.head_dim


def tensors(shape: AttentionShape, *, query: int, key: int, size: int = 2) -> float:
    """Bytes of so many tensors with query heads (q, out, dout, dq) and with K/V heads (k, v, dk, dv)."""
    heads = query * shape.heads + key * shape.kv_heads
    return float(size * heads * shape.batch * shape.length * shape.head_dim)


def forward(kernel: Kernel, shape: AttentionShape) -> dict[str, Work]:
    """S and O. Besides q, k, v and out: logsumexp."""
    work = attention_work(part="forward", element_size=element_size(kernel), **shape.case)
    return {"": Work(work.flop, work.bytes + STATISTIC * shape.rows)}


def backward(kernel: Kernel, shape: AttentionShape) -> dict[str, Work]:
    """S, dP, dV, dK and dQ, which is added in float32, so read and written; without dQ where a kernel of its own
    makes it. q, dout, k, v, logsumexp and delta in, dk and dv out."""
    shared = tensors(shape, query=2, key=4) + 2 * STATISTIC * shape.rows
    sums = tensors(shape, query=2, key=0, size=STATISTIC)
    return {
        "with dQ": Work(5 * product(shape), shared + sums),
        "deterministic, without dQ": Work(4 * product(shape), shared),
    }


def backward_dq(kernel: Kernel, shape: AttentionShape) -> dict[str, Work]:
    """S, dP and dQ; q, dout, k, v, logsumexp and delta in, dq out."""
    return {"": Work(3 * product(shape), tensors(shape, query=3, key=2) + 2 * STATISTIC * shape.rows)}


def row_delta(kernel: Kernel, shape: AttentionShape) -> dict[str, Work]:
    """out and dout in, a number a row out."""
    return {"": Work(2.0 * shape.rows * shape.head_dim, tensors(shape, query=2, key=0) + STATISTIC * shape.rows)}


def schedule_tiles(kernel: Kernel, shape: AttentionShape) -> dict[str, Work]:
    """Offsets of the sequences in, 16 bytes a tile of 128 rows out."""
    return {"": Work(0.0, 4.0 * (shape.batch + 1) + 16.0 * shape.batch * -(-shape.length // 128))}


def vectors(shape: ContrastiveShape) -> int:
    return shape.pairs + shape.candidates


def norms(shape: ContrastiveShape) -> float:
    """Bytes of a number for every vector and prefix."""
    return float(STATISTIC * len(shape.dims) * vectors(shape))


def scores_of(shape: ContrastiveShape) -> int:
    """Scores of all prefixes, those of padded columns included: weights have room for them."""
    return len(shape.dims) * shape.pairs * shape.columns


def partials(shape: ContrastiveShape) -> float:
    """Bytes of the three numbers for each 64 scores."""
    return 3 * STATISTIC * scores_of(shape) / SEGMENT


def prefix_norms(kernel: Kernel, shape: ContrastiveShape) -> dict[str, Work]:
    """Vectors in, norms out."""
    numbers = vectors(shape) * shape.dims[-1]
    return {"": Work(2.0 * numbers, element_size(kernel) * numbers + norms(shape))}


def scores(kernel: Kernel, shape: ContrastiveShape) -> dict[str, Work]:
    """One product. Vectors and norms in, partial sums, own positives' scores and, if kept, weights out."""
    kept = element_size(kernel) * scores_of(shape) if kernel.arguments[-1] == "true" else 0
    moved = element_size(kernel) * vectors(shape) * shape.dims[-1] + norms(shape) + partials(shape) + kept
    own = STATISTIC * len(shape.dims) * shape.pairs
    return {"": Work(2.0 * shape.pairs * shape.candidates * shape.dims[-1], moved + own)}


def product_scores(kernel: Kernel, shape: ContrastiveShape) -> dict[str, Work]:
    """Products of float32 features in, weights out in their place, and partial sums."""
    return {"": Work(0.0, 2.0 * STATISTIC * scores_of(shape) + norms(shape) + partials(shape))}


def combine(kernel: Kernel, shape: ContrastiveShape) -> dict[str, Work]:
    """Partial sums in, logsumexp and mean score out."""
    return {"": Work(0.0, partials(shape) + 2.0 * STATISTIC * len(shape.dims) * shape.pairs)}


def gradient_weights(kernel: Kernel, shape: ContrastiveShape) -> dict[str, Work]:
    """Weights in and, in their place, operands out; references and norms in, a sum for each 32 rows out."""
    weights = 2.0 * element_size(kernel) * scores_of(shape)
    references = partials(shape) / 3 + norms(shape) + 2 * STATISTIC * len(shape.dims) * shape.pairs
    return {"": Work(0.0, weights + references + STATISTIC * scores_of(shape) / GROUP_ROWS)}


def finish_gradient(kernel: Kernel, shape: ContrastiveShape) -> dict[str, Work]:
    """Products in float32, vectors and the norms' part in, gradients out: of queries and candidates."""
    numbers = vectors(shape) * shape.dims[-1]
    size = STATISTIC + element_size(kernel) + gradient_size(kernel)
    return {"": Work(3.0 * numbers, float(size * numbers) + norms(shape))}


def private_scores(kernel: Kernel, shape: ContrastiveShape) -> dict[str, Work]:
    """Queries and their own negatives in, a score and a norm for each prefix out."""
    own = shape.pairs * shape.negatives
    moved = element_size(kernel) * (shape.pairs + own) * shape.dims[-1] + STATISTIC * len(shape.dims) * shape.pairs
    return {"": Work(4.0 * own * shape.dims[-1], moved + 2.0 * STATISTIC * len(shape.dims) * own)}


def private_gradients(kernel: Kernel, shape: ContrastiveShape) -> dict[str, Work]:
    """Queries, negatives, weights and norms' parts in, gradients of the negatives out; added to the queries'."""
    own, dim = shape.pairs * shape.negatives, shape.dims[-1]
    read = element_size(kernel) * (shape.pairs + own) * dim + 2.0 * STATISTIC * len(shape.dims) * own
    return {"": Work(5.0 * own * dim, read + gradient_size(kernel) * own * dim + 2.0 * STATISTIC * shape.pairs * dim)}
