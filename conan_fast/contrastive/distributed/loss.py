"""InfoNCE over the processes of a group: loss and gradients by one of the two ways through everybody's candidates."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from ... import _autocast
from ..autograd import EagerInfoNCELoss, weighted_sum
from ..batch import Batch
from ..operators import present
from . import gather, ring


class GroupLoss(EagerInfoNCELoss):
    """InfoNCELoss whose last argument is (layout, group, backend). The losses are those of the whole batch.

    All that the processes tell each other they tell in the forward pass.
    """

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        *features, positive_ids, shared_ids, private_ids, dims, dim_weights, _, (layout, group, backend) = arguments
        ids = positive_ids, positive_ids, shared_ids, private_ids
        batch = Batch(*[*features, *ids, dims, dim_weights, 0, layout.total])
        way = ring if ring.needed(layout, batch.queries) else gather
        with _autocast.suspended(batch.queries.device):
            losses, grads = way.sweep(batch, layout, group, backend)
        dist.all_reduce(losses, group=group)
        return weighted_sum(losses, dim_weights), losses, *present(grads)
