"""Gradients of a loss on embeddings, with a batch as large as wished and memory for only a part of it.

The embeddings of all texts are computed part by part without a graph; the loss gives their gradients; then each part is
embedded again, with a graph, and its gradients are pushed through (gradient caching, Gao et al. 2021). A batch that
fits is embedded once, as usual.
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
class Embedding:
    """How texts of a step are embedded."""

    device: torch.device
    precision: str
    micro_batch_tokens: int
    alpha: float = 1.0
    saturation: str = "key"

    def __call__(self, model: LlamaForCausalLM, sequences: Sequence[Sequence[int]]) -> Tensor:
        """[S, hidden] float32."""
        with autocast(self.device, self.precision):
            return embed(model, pack(sequences, self.device), self.alpha, self.saturation)


def backward_through_embeddings(
    model: LlamaForCausalLM,
    sequences: Sequence[Sequence[int]],
    embedding: Embedding,
    loss_of: Callable[[Tensor], Tensor],
) -> Tensor:
    """Add the gradients of `loss_of(embeddings)` to the model's parameters.

    Args:
        sequences: S token sequences.
        loss_of: takes the embeddings [S, hidden], returns a scalar with a graph back to them.

    Returns:
        The loss, detached.
    """
    parts = split_by_tokens([len(s) for s in sequences], embedding.micro_batch_tokens)
    if len(parts) == 1:
        loss = loss_of(embedding(model, sequences))
        loss.backward()
        return loss.detach()

    with torch.no_grad():
        cached = torch.cat([embedding(model, [sequences[i] for i in part]) for part in parts])
    cached.requires_grad_()
    loss = loss_of(cached)
    loss.backward()
    assert cached.grad is not None
    for part in parts:  # the indices of a part are consecutive
        embedding(model, [sequences[i] for i in part]).backward(cached.grad[part[0] : part[-1] + 1])
    return loss.detach()
