"""The definition, in the dtype of the inputs: scores + log M, softmax, times the values; all of it L x L in memory."""

import torch
from torch import Tensor

from benchmarks.attention.cases import ALPHA, DTYPES, Attention, AttentionImplementation, Case, expanded
from conan_fast import soft_mask


def dense_bias(case: Case, device: torch.device) -> Tensor:
    """log M [L, L], which is added to the scores."""
    return soft_mask(case.length, ALPHA, device=device).log_().to(DTYPES[device.type])


def _eager(case: Case, device: torch.device) -> Attention:
    bias = dense_bias(case, device)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q.transpose(1, 2) @ expanded(k, case.heads).mT * case.head_dim**-0.5 + bias
        return (scores.softmax(-1) @ expanded(v, case.heads)).transpose(1, 2)

    return attention


def _compiled(case: Case, device: torch.device) -> Attention:
    return torch.compile(_eager(case, device), dynamic=False)


IMPLEMENTATIONS = (
    AttentionImplementation("eager", "rival", "the definition in plain torch", _eager, squares=4, dense_mask=True),
    AttentionImplementation(
        "eager_compiled", "rival", "eager under torch.compile", _compiled, squares=3, dense_mask=True
    ),
)
