"""Gradients of a loss on embeddings, for batches larger than memory (gradient caching, Gao et al. 2021).

All micro-batches are embedded without a graph, the loss gives the gradients of the embeddings, then each micro-batch is
embedded again with a graph to backpropagate its part. A single micro-batch is embedded once, as usual.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from train.loop import autocast
from train.model import embed
from train.packing import pack, split_by_tokens


@dataclass(frozen=True)
class EmbedSettings:
    """How the texts of a step are embedded: forward pass and soft mask."""

    device: torch.device
    precision: str
    micro_batch_tokens: int
    alpha: float = 1.0
    saturation: str = "key"

    def embed(self, model: LlamaForCausalLM, sequences: Sequence[Sequence[int]]) -> Tensor:
        """[S, hidden] float32."""
        with autocast(self.device, self.precision):
            return embed(model, pack(sequences, self.device), self.alpha, self.saturation)


def backward_through_embeddings(
    model: LlamaForCausalLM,
    sequences: Sequence[Sequence[int]],
    settings: EmbedSettings,
    loss_of: Callable[[Tensor], Tensor],
) -> Tensor:
    """Add the gradients of `loss_of(embeddings)` to the model's parameters.

    Args:
        sequences: S token sequences.
        loss_of: embeddings [S, hidden] float32 -> scalar with a graph.

    Returns:
        The loss, detached.
    """
    micro_batches = split_by_tokens([len(s) for s in sequences], settings.micro_batch_tokens)
    if len(micro_batches) == 1:
        loss = loss_of(settings.embed(model, sequences))
        loss.backward()
        return loss.detach()

    with torch.no_grad():
        cached = torch.cat([settings.embed(model, [sequences[i] for i in batch]) for batch in micro_batches])
    cached.requires_grad_()
    loss = loss_of(cached)
    loss.backward()
    assert cached.grad is not None
    for batch in micro_batches:  # its indices are consecutive
        settings.embed(model, [sequences[i] for i in batch]).backward(cached.grad[batch[0] : batch[-1] + 1])
    return loss.detach()
