"""sentence-transformers' (Cached)MultipleNegativesRankingLoss, in MatryoshkaLoss for several dims, and ours for it.

These losses embed texts themselves. They run here unchanged on a SentenceTransformer whose only module looks the
embeddings up: leaves of the graph, one per column of the batch (for the cached loss one per column and mini-batch), so
that no time is spent on slices and their gradients. Its cached loss also chunks the scores by its mini-batch: the
default of 32, which is meant for a real model's memory, and 1,024. Embeddings have the dtype of the run.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contrastive.cases import TEMPERATURE, GradientStep, InfoNCEImplementation, Inputs
from benchmarks.suite import NotRun

MINI_BATCH, DEFAULT_MINI_BATCH = 1024, 32
LARGEST_DIM = 384  # with the default mini-batch, which is slow


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


MakeLoss = Callable[..., nn.Module]  # of the model, the dims and options such as scale


def _stock(name: str, model: Any, dims: Sequence[int], **options: Any) -> nn.Module:
    """Its loss `name`; inside MatryoshkaLoss where there are several dims."""
    from sentence_transformers.sentence_transformer import losses

    loss = getattr(losses, name)(model, **options)
    return loss if len(dims) == 1 else losses.MatryoshkaLoss(model, loss, list(dims))


def _ours(name: str, model: Any, dims: Sequence[int], **options: Any) -> nn.Module:
    from conan_fast.integrations import sentence_transformers

    made: nn.Module = getattr(sentence_transformers, name)(model, matryoshka_dims=list(dims), **options)
    return made


def _build(make: MakeLoss, part: int | None, inputs: Inputs, dims: Sequence[int]) -> GradientStep:
    """A step of a loss whose mini-batches have `part` rows (None: it is not cached)."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:  # no defect of ours
        raise NotRun(f"is not installed: {error}") from None

    queries, positives, *negatives = inputs
    columns = [queries, positives, *(column for x in negatives for column in x.unbind(1))]
    if part == DEFAULT_MINI_BATCH and queries.shape[1] > LARGEST_DIM:
        raise NotRun(f"mini-batches of {part} are measured up to D = {LARGEST_DIM}")
    given = _Given(columns, part or len(queries))
    model = SentenceTransformer(modules=[given], device=str(queries.device))
    options = {"mini_batch_size": part} if part else {}
    loss, features = make(model, dims, scale=1 / TEMPERATURE, **options), given.features()

    def step() -> None:
        for leaves in given.parts:
            for leaf in leaves:
                leaf.grad = None
        loss(features, None).backward()

    def gradients() -> list[Tensor]:
        grads = [torch.cat([leaf.grad for leaf in leaves]) for leaves in given.parts]
        return [*grads[:2], *([torch.stack(grads[2:], 1)] if negatives else [])]

    return GradientStep(step, gradients)


def _of_ours(name: str, loss: str, part: int | None) -> InfoNCEImplementation:
    about = f"conan_fast's {loss} for sentence-transformers{_of_the_default(part)}"
    return InfoNCEImplementation(name, "ours", about, partial(_build, partial(_ours, loss), part))


def _of_stock(name: str, loss: str, part: int | None, squares: int, per_dim: int) -> InfoNCEImplementation:
    about = f"sentence-transformers' {loss} in MatryoshkaLoss{_of_the_default(part)}"
    build = partial(_build, partial(_stock, loss), part)
    return InfoNCEImplementation(name, "rival", about, build, squares, per_dim, prefixes=1)


def _of_the_default(part: int | None) -> str:
    return f", mini-batches of {part}" if part == DEFAULT_MINI_BATCH else ""


CACHED, OUR_CACHED = "CachedMultipleNegativesRankingLoss", "CachedInfoNCELoss"
IMPLEMENTATIONS = (
    _of_ours("ours_in_st", "InfoNCELoss", None),
    _of_ours("ours_in_st_cached", OUR_CACHED, MINI_BATCH),
    _of_ours("ours_in_st_cached_32", OUR_CACHED, DEFAULT_MINI_BATCH),
    _of_stock("st_mnrl", "MultipleNegativesRankingLoss", None, 3, 1),
    _of_stock("st_cached_mnrl", CACHED, MINI_BATCH, 0, 0),
    _of_stock("st_cached_mnrl_32", CACHED, DEFAULT_MINI_BATCH, 0, 0),
)
