"""CoSENT as a loss of sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...contrastive.cosent import cosent
from . import stock
from .arguments import matryoshka, matryoshka_citation, refuse_unsupported


class CoSENTLoss(stock.CoSENTLoss):
    """sentence-transformers' CoSENTLoss by `conan_fast.cosent`, at all Matryoshka dims at once.

    Columns: two texts and a label. Takes the arguments of the stock loss, of which `scale` is 1 / temperature.
    matryoshka_dims, matryoshka_weights: as of MatryoshkaLoss, which this loss is equal to when they are given.
    Raises ValueError for a similarity_fct other than `util.pairwise_cos_sim`, and for a scale that is not positive.
    """

    def __init__(
        self,
        model: Any,
        *args: Any,
        matryoshka_dims: Sequence[int] | None = None,
        matryoshka_weights: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, *args, **kwargs)
        refuse_unsupported(self, stock.CoSENTLoss, [stock.pairwise_cos_sim])
        self.matryoshka_dims, self.matryoshka_weights = matryoshka(model, matryoshka_dims, matryoshka_weights)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        """embeddings: two tensors [N, D]; labels: N integers, floats or bools."""
        refuse_unsupported(self, stock.CoSENTLoss, [stock.pairwise_cos_sim])
        if len(embeddings) != 2:
            raise ValueError(f"CoSENTLoss takes two columns of texts and a label, got {len(embeddings)} columns")
        first, second = embeddings
        labels = labels.int() if labels.dtype == torch.bool else labels
        return cosent(
            first,
            second,
            labels.flatten(),
            temperature=1 / self.scale,
            dims=self.matryoshka_dims,
            dim_weights=self.matryoshka_weights,
        )

    def get_config_dict(self) -> dict[str, Any]:
        """For the model card."""
        dims = {"matryoshka_dims": self.matryoshka_dims, "matryoshka_weights": self.matryoshka_weights}
        return {**super().get_config_dict(), **dims}

    @property
    def citation(self) -> str:
        """For the model card."""
        return str(super().citation) + matryoshka_citation(self.matryoshka_dims)
