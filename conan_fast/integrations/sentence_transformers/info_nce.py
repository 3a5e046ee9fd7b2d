"""InfoNCE as losses of sentence-transformers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...contrastive.info_nce import info_nce
from . import stock
from .arguments import matryoshka, matryoshka_citation, refuse_unsupported
from .text_ids import text_ids

_COSINES = [stock.cos_sim, stock.pytorch_cos_sim]


class _FusedInfoNCE:
    """What both losses share; comes before the stock loss, whose `model`, `scale` and so on it uses."""

    stock_loss: Any
    scale: Any
    gather_across_devices: bool

    def __init__(
        self,
        model: Any,
        *args: Any,
        matryoshka_dims: Sequence[int] | None = None,
        matryoshka_weights: Sequence[float] | None = None,
        mask_duplicates: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, *args, **kwargs)  # type: ignore[call-arg]
        refuse_unsupported(self, self.stock_loss, _COSINES)
        self.matryoshka_dims, self.matryoshka_weights = matryoshka(model, matryoshka_dims, matryoshka_weights)
        self.mask_duplicates = mask_duplicates
        self._document_ids: list[Tensor] | None = None  # [N] of each column but the first, during forward

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch: columns as `preprocess` (`tokenize`) returns them; labels are not used."""
        columns = list(sentence_features)
        # First, because modules may change the features in place.
        self._document_ids = [text_ids(column) for column in columns[1:]] if self.mask_duplicates else None
        try:
            loss: Tensor = super().forward(columns, labels)  # type: ignore[misc]
        finally:
            self._document_ids = None
        return loss

    def _loss(self, columns: Sequence[Tensor]) -> Tensor:
        """Of the embeddings of all columns, [N, D] each: this process's mean, as the stock losses return it."""
        refuse_unsupported(self, self.stock_loss, _COSINES)
        if len(columns) < 2:
            raise ValueError(f"{type(self).__name__} takes at least two columns of texts, got {len(columns)}")
        if self.mask_duplicates and self._document_ids is None:
            raise ValueError("mask_duplicates=True needs the texts, got embeddings alone; call the loss with features")
        queries, *documents = columns
        ids, first = self._document_ids, 0
        if self.gather_across_devices:
            _check_sizes(queries, len(columns))
            documents = [stock.all_gather_with_grad(x) for x in documents]
            ids = None if ids is None else [stock.all_gather(x) for x in ids]
            first = len(queries) * dist.get_rank() if dist.is_initialized() else 0
        own = slice(first, first + len(queries))
        positives, negatives = _candidates(documents, own)
        positive_ids, negative_ids = (None, None) if ids is None else _candidates(ids, own)
        return info_nce(
            queries, positives, negatives, temperature=1 / self.scale, positive_ids=positive_ids,
            negative_ids=negative_ids, dims=self.matryoshka_dims, dim_weights=self.matryoshka_weights,
        ).loss  # fmt: skip

    def get_config_dict(self) -> dict[str, Any]:
        """For the model card."""
        added = ("matryoshka_dims", "matryoshka_weights", "mask_duplicates")
        stock_config: dict[str, Any] = super().get_config_dict()  # type: ignore[misc]
        return {**stock_config, **{name: getattr(self, name) for name in added}}

    @property
    def citation(self) -> str:
        """For the model card."""
        return super().citation + matryoshka_citation(self.matryoshka_dims)  # type: ignore[misc]


def _candidates(columns: Sequence[Tensor], own: slice) -> tuple[Tensor, Tensor | None]:
    """(own positives [N, ...], everything else [N, K, ...] or None) of columns [M, ...], the positives' first.

    Every candidate counts for every query, so the K that stand beside a query are not its own in particular.
    """
    positives = columns[0][own]
    others = torch.cat([columns[0][: own.start], columns[0][own.stop :], *columns[1:]])
    return positives, others.unflatten(0, (len(positives), -1)) if len(others) else None


def _check_sizes(queries: Tensor, columns: int) -> None:
    """Raises ValueError, on all processes alike, unless they hold equally many texts; gathering would hang."""
    if not dist.is_initialized():
        return
    local = torch.tensor([*queries.shape, columns], device=queries.device)
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, local)
    sizes = torch.stack(parts).tolist()
    if any(size != sizes[0] for size in sizes):
        got = f"[texts, dims, columns] by process: {sizes}"
        raise ValueError(f"gather_across_devices=True needs batches of one size in all processes, got {got}")


class InfoNCELoss(_FusedInfoNCE, stock.MultipleNegativesRankingLoss):
    """sentence-transformers' MultipleNegativesRankingLoss by `conan_fast.info_nce`, at all Matryoshka dims at once.

    Columns: (anchor, positive, negative_1, ..., negative_n), n >= 0; every document is a candidate for every anchor.
    Takes the arguments of the installed stock loss, of which `scale` is 1 / temperature. Values and gradients are equal
    to its own, with `gather_across_devices` under DistributedDataParallel as well.

    matryoshka_dims, matryoshka_weights: as of MatryoshkaLoss, which this loss is equal to when they are given.
    mask_duplicates: a document whose tokens equal those of the anchor's own positive does not count as its negative.
    Raises ValueError for what is not supported: other directions than query_to_doc, hardness, a similarity_fct other
    than `util.cos_sim`; and for a scale that is not positive.
    """

    stock_loss = stock.MultipleNegativesRankingLoss

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """embeddings: one tensor [N, D] per column."""
        return self._loss(embeddings)


class CachedInfoNCELoss(_FusedInfoNCE, stock.CachedMultipleNegativesRankingLoss):
    """sentence-transformers' CachedMultipleNegativesRankingLoss by `conan_fast.info_nce`: InfoNCELoss with GradCache.

    Texts are embedded in mini-batches (`mini_batch_size` texts, or `mini_batch_num_tokens` tokens), twice, with the
    same random states. The loss between is computed once, over all embeddings and Matryoshka dims; it is not split.
    Columns, arguments and errors are those of InfoNCELoss and of the stock loss.
    """

    stock_loss = stock.CachedMultipleNegativesRankingLoss

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """reps: the embeddings of each column, by mini-batch."""
        loss = self._loss([torch.cat(column) for column in reps])
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss
