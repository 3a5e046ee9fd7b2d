"""sentence-transformers' (Cached)MultipleNegativesRankingLoss inside its MatryoshkaLoss.

Its losses embed texts themselves. They run here unchanged on a SentenceTransformer whose only module looks the
embeddings up: leaves of the graph, one per column of the batch (for the cached loss one per column and mini-batch), so
that no time is spent on slices and their gradients. The cached loss also chunks the scores by its mini-batch: 1,024 in
place of its default 32, which is meant for a real model's memory. Embeddings have the dtype of the run.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.contrastive.cases import TEMPERATURE, GradientStep, InfoNCEImplementation, Inputs

MINI_BATCH = 1024


class _Given(nn.Module):
    """The module that looks embeddings up: "place" holds the indices of the texts, counted across all columns."""

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


def _build(name: str, part: int | None, inputs: Inputs, dims: Sequence[int]) -> GradientStep:
    """MatryoshkaLoss around its loss `name`, whose mini-batches have `part` rows (None: all)."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses

    queries, positives, *negatives = inputs
    columns = [queries, positives, *(column for x in negatives for column in x.unbind(1))]
    given = _Given(columns, part or len(queries))
    model = SentenceTransformer(modules=[given], device=str(queries.device))
    options = {"mini_batch_size": part} if part else {}
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

    return GradientStep(step, gradients)


LOSSES = ("MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss")
IMPLEMENTATIONS = tuple(
    InfoNCEImplementation(
        name, "rival", f"sentence-transformers' {loss} in MatryoshkaLoss", build, squares, per_dim, prefixes=1
    )
    for name, loss, build, squares, per_dim in (
        ("st_mnrl", LOSSES[0], partial(_build, LOSSES[0], None), 3, 1),
        ("st_cached_mnrl", LOSSES[1], partial(_build, LOSSES[1], MINI_BATCH), 0, 0),
    )
)
