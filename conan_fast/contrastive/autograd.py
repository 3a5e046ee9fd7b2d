"""The autograd function of InfoNCE.

The gradients are made together with the loss; the backward pass multiplies them by the loss's own gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from .. import _second_derivatives
from . import operators  # noqa: F401  defines torch.ops.conan_fast.info_nce_sweep
from .batch import Batch, Wanted


def wanted_gradients(batch: Batch) -> Wanted:
    """The gradients that a backward pass can ask for."""
    enabled = torch.is_grad_enabled()
    return Wanted(*[enabled and x is not None and x.requires_grad for x in batch.features])


class InfoNCELoss(torch.autograd.Function):
    """(loss, loss per dim [dims], *wanted gradients), by apply(*features, *ids, dims, dim_weights, wanted, backend).

    features, dims, dim_weights: as in Batch; ids: of positives, shared and private negatives. The gradients are results
    because that is how torch.func lets an autograd function keep them; nobody else uses them.
    """

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        *features, positive_ids, shared_ids, private_ids, dims, dim_weights, wanted, backend = arguments
        ids = positive_ids, positive_ids, shared_ids, private_ids
        losses, grads = torch.ops.conan_fast.info_nce_sweep(
            *features, *ids, dims, dim_weights, 0, features[0].shape[0], wanted, backend
        )
        return weighted_sum(losses, dim_weights), losses, *grads

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, losses, *grads = output
        ctx.mark_non_differentiable(losses, *grads)
        ctx.set_materialize_grads(False)
        ctx.wanted = inputs[-2]
        # The features tell `_second_derivatives.refuse` what the gradients depend on.
        features = [x for x, is_wanted in zip(inputs, ctx.wanted, strict=False) if is_wanted]
        ctx.save_for_backward(*grads, *features)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        found: list[Tensor | None] = [None] * ARGUMENTS
        if grads[0] is None:
            return tuple(found)
        count = sum(ctx.wanted)
        saved = ctx.saved_tensors  # asked for once: torch.utils.checkpoint does not allow more
        kept, features = saved[:count], saved[count:]
        if torch.compiler.is_compiling():
            scaled = torch.ops.conan_fast.info_nce_scaled(kept, grads[0], features)
        else:
            in_place = _graph_is_freed()
            scaled = [_times(x, grads[0], in_place).to(like.dtype) for x, like in zip(kept, features, strict=True)]
        results = iter(_second_derivatives.refuse("info_nce", scaled, [grads[0], *features]))
        for place, is_wanted in enumerate(ctx.wanted):
            if is_wanted:
                found[place] = next(results)
        return tuple(found)


class EagerInfoNCELoss(InfoNCELoss):
    """InfoNCELoss that names the operator where it refuses a transform. torch.compile traces no class that does."""

    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        """torch's own binds default arguments, of which there are none here, to a signature: 15 us a call."""
        if torch._C._are_functorch_transforms_active():
            return super().apply(*arguments)
        return super(torch.autograd.Function, cls).apply(*arguments)  # type: ignore[misc]

    @staticmethod
    def vmap(*_: Any) -> NoReturn:
        raise RuntimeError(
            "info_nce does not support torch.vmap: its loss compares all rows of a batch with each other. Call it once "
            "for each batch, or use conan_fast.reference.info_nce."
        )

    @staticmethod
    def jvp(*_: Any) -> NoReturn:
        raise RuntimeError(
            "info_nce has no forward-mode derivatives (torch.func.jvp, jacfwd, torch.autograd.forward_ad). Use reverse "
            "mode (torch.func.grad, vjp, jacrev, backward), or conan_fast.reference.info_nce."
        )


ARGUMENTS = 12  # of InfoNCELoss.apply


def weighted_sum(losses: Tensor, dim_weights: Sequence[float]) -> Tensor:
    """Of losses [dims]. The weights are Python floats: a tensor of them would be one more copy to the device."""
    if all(weight == 1 for weight in dim_weights):
        return losses.sum()
    return torch.stack([losses[m] * weight for m, weight in enumerate(dim_weights)]).sum()


def _times(kept: Tensor, grad: Tensor, in_place: bool) -> Tensor:
    if not in_place or kept.dim() == 0:  # a temperature may be on the CPU and the loss on a GPU
        return kept * grad
    # detach: autograd copies a gradient that ctx holds as well.
    return kept.mul_(grad).detach()


def _graph_is_freed() -> bool:
    """Whether the graph is freed after this backward pass, so that what it kept may be overwritten.

    That saves a copy of all gradients. torch has no public way to ask; where there is none at all, the answer is no.
    """
    if torch.is_grad_enabled():
        return False
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return keeps is not None and not keeps()
