"""Loss and gradients of a batch by the definition: each text by itself, attention and loss from conan_fast.reference.

In float64 (RMSNorm and rotary embeddings round to float32 within transformers), in float32 for a large model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, LlamaModel

from benchmarks.step.models import Parameters
from benchmarks.step.task import Task
from conan_fast import reference

NAME = "conan_fast_definition"
LARGE = 5e8  # parameters, from which on it is float32


@dataclass(frozen=True)
class Result:
    """gradients: of the watched parameters."""

    loss: float
    gradients: dict[str, Tensor]


def by_definition(task: Task, alphas: Sequence[float]) -> dict[float, Result]:
    """For each strength of the soft mask."""
    AttentionInterface.register(NAME, _attention)
    llama = task.model().model.requires_grad_(False)
    llama.config._attn_implementation = NAME
    llama.to(torch.float32 if Parameters.of(task.recipe).total > LARGE else torch.float64)
    for parameter in watched(llama).values():
        parameter.requires_grad_()
    results = {}
    for alpha in alphas:
        llama.zero_grad()
        loss = _loss(llama, task, alpha)
        loss.backward()
        results[alpha] = Result(float(loss.detach()), gradients(llama, task))
    return results


def watched(llama: LlamaModel) -> dict[str, Tensor]:
    """The parameters whose gradients are compared."""
    first: Any = llama.layers[0]
    last: Any = llama.layers[-1]
    return {
        "q_proj of the first layer": first.self_attn.q_proj.weight,
        "k_proj of the first layer": first.self_attn.k_proj.weight,
        "down_proj of the last layer": last.mlp.down_proj.weight,
        "gain of the last norm": llama.norm.weight,
        "embeddings": llama.embed_tokens.weight,
    }


def gradients(llama: LlamaModel, task: Task) -> dict[str, Tensor]:
    """Copies, of the embeddings those of the batch's tokens."""
    tokens = sorted({token for sequence in task.texts.sequences() for token in sequence})
    grads = {name: parameter.grad for name, parameter in watched(llama).items() if parameter.grad is not None}
    grads["embeddings"] = grads["embeddings"][torch.tensor(tokens, device=task.device)]
    return {name: grad.detach().clone() for name, grad in grads.items()}


def _loss(llama: LlamaModel, task: Task, alpha: float) -> Tensor:
    embeddings = []
    for sequence in task.texts.sequences():
        tokens = torch.tensor([sequence], device=task.device)
        embeddings.append(llama(input_ids=tokens, alpha=alpha).last_hidden_state[0].mean(0))
    pairs, recipe = len(task.texts.rows), task.stage_recipe()
    queries, positives, negatives = torch.stack(embeddings).split([pairs, pairs, pairs * task.texts.num_negatives])
    return reference.info_nce(
        queries,
        positives,
        negatives.unflatten(0, (pairs, -1)) if len(negatives) else None,
        temperature=recipe.temperature,
        dims=recipe.dims or None,
    ).loss


def _attention(
    _: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *__: Any, scaling: float, alpha: float, **___: Any
) -> tuple[Tensor, None]:
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return reference.soft_mask_attention(q, k, v, alpha, scale=scaling), None
