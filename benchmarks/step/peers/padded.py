"""The same step by transformers and plain torch: padded batches, SDPA with a dense mask, the loss dim by dim.

All texts of a step differ, so the loss need not look for candidates that are right answers.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.profiler import record_function
from transformers import LlamaForCausalLM

from benchmarks.step.implementation import StageRunning, StepImplementation
from benchmarks.step.task import Task
from train.loop import Stage, autocast
from train.metrics import Values

Sequences = Sequence[Sequence[int]]


def micro_batches(sizes: Sequence[int], bound: int | None) -> list[slice]:
    """Runs of texts with at most `bound` tokens when each is padded to the longest of its run."""
    parts, start, longest = [], 0, 0
    for place, size in enumerate(sizes):
        longest = max(longest, size)
        if bound is not None and place > start and longest * (place + 1 - start) > bound:
            parts.append(slice(start, place))
            start, longest = place, size
    return [*parts, slice(start, len(sizes))]


def soft_mask_bias(sizes: Tensor, length: int, alpha: float, dtype: torch.dtype) -> Tensor:
    """log M of each row's own length, -inf for keys of padding: sizes [B] -> [B, 1, L, L].

    Rows begin at multiples of 16 elements; otherwise SDPA's kernels would copy it in each layer.
    """
    query = torch.arange(length, device=sizes.device)[:, None]
    key = torch.arange(-(-length // 16) * 16, device=sizes.device)
    log_m = (alpha * sizes[:, None] / (key + 1)).clamp(max=1).log()  # above the diagonal
    bias = torch.where(key <= query, 0, log_m[:, None]).masked_fill(key >= sizes[:, None, None], -torch.inf)
    return bias.to(dtype)[:, None, :, :length]


class Padded(Stage[Any]):
    """bound: tokens of a micro-batch, padding included; None for one micro-batch. by_length: sort the texts first."""

    name = "padded"

    def __init__(self, task: Task, bound: int | None, by_length: bool) -> None:
        self.recipe, self.task = task.stage_recipe(), task
        self.alpha, self.bound, self.by_length = task.alpha, bound, by_length
        self._rng = np.random.default_rng(0)

    def backward(self, model: LlamaForCausalLM, step: int) -> tuple[Values, int]:
        sequences = self.task.texts.sequences(self._rng.permutation(len(self.task.texts.rows)))
        sizes, loss_of = [len(sequence) for sequence in sequences], self._loss
        if self.by_length and len(micro_batches(sizes, self.bound)) > 1:
            order = np.argsort(sizes, kind="stable")
            sequences = [sequences[i] for i in order]
            place = torch.from_numpy(order.argsort()).to(self.task.device)
            loss_of = lambda embeddings: self._loss(embeddings[place])  # noqa: E731
        return {"loss": self._backward(model, sequences, loss_of)}, sum(sizes)

    def _backward(self, model: LlamaForCausalLM, sequences: Sequences, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        """With gradient caching where there are several micro-batches, as in train.embedding_loss."""
        parts = [sequences[part] for part in micro_batches([len(s) for s in sequences], self.bound)]
        if len(parts) == 1:
            loss = loss_of(self._embed(model, sequences))
            loss.backward()
            return loss.detach()
        with torch.no_grad():
            cached = torch.cat([self._embed(model, part) for part in parts])
        loss = loss_of(cached.requires_grad_())
        loss.backward()
        assert cached.grad is not None
        for part, grad in zip(parts, cached.grad.split([len(part) for part in parts]), strict=True):
            self._embed(model, part).backward(grad)
        return loss.detach()

    def _embed(self, model: LlamaForCausalLM, sequences: Sequences) -> Tensor:
        """[B, hidden] float32."""
        sizes_host = np.array([len(sequence) for sequence in sequences])
        padded = np.zeros((len(sizes_host), sizes_host.max()), dtype=np.int64)
        padded[np.arange(padded.shape[1]) < sizes_host[:, None]] = np.concatenate(sequences)
        ids, sizes = (torch.from_numpy(x).to(self.task.device) for x in (padded, sizes_host))
        real = torch.arange(ids.shape[1], device=ids.device) < sizes[:, None]
        mask = real if self.alpha == 1 else soft_mask_bias(sizes, ids.shape[1], self.alpha, self.task.dtype)
        with autocast(self.task.device, self.task.precision):
            hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return (hidden.float() * real[..., None]).sum(1) / sizes[:, None]

    @record_function("loss")
    def _loss(self, embeddings: Tensor) -> Tensor:
        pairs, temperature = len(self.task.texts.rows), self.recipe.temperature
        queries, candidates = embeddings[:pairs], embeddings[pairs:]
        labels = torch.arange(pairs, device=embeddings.device)
        total = embeddings.new_zeros(())
        for dim in self.recipe.dims or [embeddings.shape[1]]:
            q, c = normalize(queries[:, :dim], dim=1), normalize(candidates[:, :dim], dim=1)
            total = total + cross_entropy(q @ c.T / temperature, labels)
        return total

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None: ...


class Transformers(StageRunning):
    def __init__(self, task: Task, *, one_pass: bool = False, by_length: bool = False) -> None:
        self.one_pass, self.by_length = one_pass, by_length
        super().__init__(task)
        self.llama.config._attn_implementation = "sdpa"
        self.llama.config.is_causal = False  # so that a 2-D mask means padding only

    def stage_of(self, task: Task) -> Padded:
        return Padded(task, None if self.one_pass else task.micro_batch_tokens, self.by_length)


SDPA = "padded micro-batches, SDPA with the dense mask, eager loss"
SORTED = "the same, the texts of a step sorted by length: less padding"
ONE_PASS = "the same, the whole batch at once, without gradient caching: more memory"
sorted_texts, one_pass = partial(Transformers, by_length=True), partial(Transformers, one_pass=True)
IMPLEMENTATIONS = (
    StepImplementation("transformers_sdpa", "rival", SDPA, Transformers),
    StepImplementation("transformers_sdpa_sorted", "rival", SORTED, sorted_texts, in_parts=True),
    StepImplementation("transformers_sdpa_one_pass", "rival", ONE_PASS, one_pass, one_pass=True, in_parts=True),
)
