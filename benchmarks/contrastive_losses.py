"""InfoNCE as we compute it and as others do, on given embeddings, and the three products that nobody can do without.

sentence-transformers' losses embed texts themselves. They run here as they are, public classes and all, on a
SentenceTransformer whose only module looks the embeddings up: leaves of the graph, one per column of the batch (for the
cached loss one per column and mini-batch, as its steps make them), so that no time goes into slicing or into gradients
of slices. The cached loss also chunks the scores by its mini-batch; 1,024 in place of its default 32, which is meant
for a real model's memory. Embeddings are in the dtype of the run, as a model loaded in it would give them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from benchmarks import timing
from benchmarks.runner import NotRun
from conan_fast import info_nce

TEMPERATURE = 0.05
MINI_BATCH = 1024

Inputs = Sequence[Tensor]  # queries [N, D], positives [N, D] and, with hard negatives, negatives [N, K, D]
Loss = Callable[..., Tensor]  # of the inputs


@dataclass(frozen=True)
class Work:
    """step: forward and backward. gradients: those of the inputs that the last step left."""

    step: timing.Step
    gradients: Callable[[], list[Tensor]]


Build = Callable[[Inputs, Sequence[int]], Work]  # of the inputs, which want gradients, and the dims


def with_autograd(inputs: Inputs, loss: Loss) -> Work:
    kept: list[Tensor] = []

    def step() -> None:
        kept.clear()
        kept.extend(torch.autograd.grad(loss(*inputs), inputs))

    return Work(step, lambda: kept)


def our_backend(inputs: Inputs, dims: Sequence[int]) -> tuple[str, str | None]:
    """("cuda", None), or ("torch", why not the kernels); found out by a call with two rows of the inputs."""
    if inputs[0].device.type == "cpu":
        return "torch", None
    try:
        info_nce(*(x.detach()[:2] for x in inputs), temperature=TEMPERATURE, dims=dims, backend="cuda")
    except (RuntimeError, TypeError, ValueError) as error:
        return "torch", str(error)
    return "cuda", None


def ours(inputs: Inputs, dims: Sequence[int]) -> Work:
    """With the backend that "auto" takes, named: nothing falls back unseen."""
    backend, _ = our_backend(inputs, dims)
    return with_autograd(inputs, lambda *x: info_nce(*x, temperature=TEMPERATURE, dims=dims, backend=backend).loss)


def ours_once_per_dim(inputs: Inputs, dims: Sequence[int]) -> Work:
    if len(dims) == 1:
        raise NotRun("with one dim it is the same as ours")
    backend, _ = our_backend(inputs, dims)

    def loss(*features: Tensor) -> Tensor:
        losses = [info_nce(*features, temperature=TEMPERATURE, dims=[dim], backend=backend).loss for dim in dims]
        return torch.stack(losses).sum()

    return with_autograd(inputs, loss)


def all_candidates(positives: Tensor, *negatives: Tensor) -> Tensor:
    """[N (1 + K), D], the positives first."""
    return torch.cat([positives, *(x.flatten(0, 1) for x in negatives)])


def _eager_loss(dims: Sequence[int]) -> Loss:
    def loss(queries: Tensor, *others: Tensor) -> Tensor:
        candidates = all_candidates(*others)
        labels = torch.arange(len(queries), device=queries.device)
        total = queries.new_zeros(())
        for dim in dims:
            q, c = normalize(queries[:, :dim], dim=1), normalize(candidates[:, :dim], dim=1)
            total = total + cross_entropy(q @ c.T / TEMPERATURE, labels)
        return total

    return loss


def eager(inputs: Inputs, dims: Sequence[int]) -> Work:
    """The usual way: normalise the prefixes, multiply, cross-entropy, for each dim."""
    return with_autograd(inputs, _eager_loss(dims))


def eager_compiled(inputs: Inputs, dims: Sequence[int]) -> Work:
    torch.compiler.reset()  # after some shapes torch.compile would fall back to eager
    return with_autograd(inputs, torch.compile(_eager_loss(dims), dynamic=False))


class _Given(nn.Module):
    """The module that looks embeddings up: "place" holds the numbers of the texts, all columns counted through."""

    def __init__(self, columns: Sequence[Tensor], part: int) -> None:
        super().__init__()
        self.parts = [[x.detach().requires_grad_() for x in column.detach().split(part)] for column in columns]
        self._rows, self._part, self._size = len(columns[0]), part, columns[0].shape[1]

    def get_embedding_dimension(self) -> int:
        return self._size

    def features(self) -> list[dict[str, Tensor]]:
        """What the loss gets for the columns."""
        return [{"place": torch.arange(self._rows) + self._rows * i} for i in range(len(self.parts))]

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        column, row = divmod(int(features["place"][0]), self._rows)
        return {"sentence_embedding": self.parts[column][row // self._part]}


def sentence_transformers(name: str, part: int | None, **options: Any) -> Build:
    """MatryoshkaLoss around its loss `name`, whose mini-batches have `part` rows (None: all)."""

    def build(inputs: Inputs, dims: Sequence[int]) -> Work:
        try:
            from sentence_transformers import SentenceTransformer
            from sentence_transformers.sentence_transformer import losses
        except ImportError as error:
            raise NotRun(f"sentence-transformers does not load: {error}") from None

        queries, positives, *negatives = inputs
        columns = [queries, positives, *(column for x in negatives for column in x.unbind(1))]
        given = _Given(columns, part or len(queries))
        model = SentenceTransformer(modules=[given], device=str(queries.device))
        inner = getattr(losses, name)(model, scale=1 / TEMPERATURE, **options)
        loss, features = losses.MatryoshkaLoss(model, inner, list(dims)), given.features()

        def step() -> None:
            for leaves in given.parts:
                for leaf in leaves:
                    leaf.grad = None
            loss(features, None).backward()

        def gradients() -> list[Tensor]:
            grads = [torch.cat([leaf.grad for leaf in leaves]) for leaves in given.parts]
            return [*grads[:2], *([torch.stack(grads[2:], 1)] if negatives else [])]

        return Work(step, gradients)

    return build


multiple_negatives = sentence_transformers("MultipleNegativesRankingLoss", None)
cached_multiple_negatives = sentence_transformers(
    "CachedMultipleNegativesRankingLoss", MINI_BATCH, mini_batch_size=MINI_BATCH
)


def three_products(inputs: Inputs, _: Sequence[int]) -> Work:
    """scores = Q C^T, G C and G^T Q, full width, with random G, in the dtype of the inputs.

    G and the scores take at most a fourth of the free memory (CPU: 1 GiB); where N x M is more it goes by rows, and
    adding up G^T Q costs a little that is not in a product.
    """
    queries, *others = (x.detach() for x in inputs)
    candidates = all_candidates(*others)
    free = timing.free_bytes(queries.device)
    room = 2**30 if free is None else free // 4
    step = min(len(queries), max(1, room // (2 * queries.element_size() * len(candidates))))
    given = torch.randn(step, len(candidates), dtype=queries.dtype, device=queries.device)
    scores, grad_queries, grad_candidates = (torch.empty_like(x) for x in (given, queries, candidates))

    def products() -> None:
        for start in range(0, len(queries), step):
            part = queries[start : start + step]
            grad = given[: len(part)]
            torch.mm(part, candidates.T, out=scores[: len(part)])
            torch.mm(grad, candidates, out=grad_queries[start : start + step])
            grad_candidates.addmm_(grad.T, part, beta=1 if start else 0)

    return Work(products, lambda: [grad_queries, grad_candidates])
