"""One optimiser step of the embedding stages, from texts to changed weights: cases, and the check by the definition."""

import traceback
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, LlamaModel

from benchmarks import timing
from benchmarks.attention.cases import our_backend
from benchmarks.step.breakdown import breakdown
from benchmarks.step.implementation import Running, StepImplementation
from benchmarks.step.models import Parameters
from benchmarks.step.task import Case, Task, lengths
from benchmarks.suite import Checked, NotRun, relative_error
from conan_fast import reference

PARTS = ("step",)
DEFINITION = "conan_fast_definition"  # the name of its attention function in transformers
LARGE = 5e8  # parameters, from which on the definition is computed in float32
# Relative errors, of a gradient by its (Frobenius) norm. In bfloat16 on a CPU right ones were off by up to 0.014 (loss)
# and 0.038 (gradients, the 1.4B model); with alpha off by 0.1 gradients were off by 0.1 and more.
LOSS_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.08}


def cases(device_type: str) -> list[Case]:
    """The paper's model and batch first."""
    if device_type == "cpu":
        return [
            Case("weak", "tiny", 16, 1024),
            Case("supervised", "tiny", 8, 1152),
            Case("weak", "tiny", 16, 256, micro_batch_tokens=64),  # gradient caching
            Case("weak", "tiny", 8, 256),
            Case("supervised", "tiny", 4, 288),
        ]
    return [
        Case("weak", "conan-1.4b", 64, 16_384),
        Case("supervised", "conan-1.4b", 64, 16_384),
        Case("weak", "small", 4096, 65_536),
        Case("supervised", "small", 512, 65_536),
        Case("weak", "conan-1.4b", 512, 32_768),
        Case("weak", "medium", 256, 16_384),
        Case("supervised", "medium", 128, 32_768),
        Case("weak", "small", 256, 16_384),
        Case("supervised", "small", 64, 16_384),
        Case("weak", "conan-1.4b", 64, 4096),
        Case("weak", "small", 64, 65_536),  # long texts: 512 tokens on average
        Case("weak", "small", 64, 4096),
        Case("weak", "tiny", 64, 4096),
    ]


class Workload:
    """The texts of a case, and loss and gradients of a few of them by the definition."""

    def __init__(self, case: Case, device: torch.device, precision: str | None = None) -> None:
        """precision: in place of the recipe's, see train.recipe.Recipe."""
        self.task = Task.of(case, device, precision)
        self.checked = self.task.checked()
        self._expected = by_definition(self.checked, sorted({self.task.alpha, 1.0}))
        dtype, longest = str(self.task.dtype).removeprefix("torch."), int(lengths(case).max())
        self.facts: dict[str, Any] = {"dtype": dtype, "texts": case.texts, "longest_text": longest, "dims": case.dims}
        # The backend is that of attention, if the kernels support the head_dim.
        self.facts |= {"alpha": self.task.alpha, "our_backend": our_backend(device)}

    def check(self, implementation: StepImplementation) -> Checked:
        """Raises NotRun or WrongResult."""
        if reason := implementation.reason(self.task.case):
            raise NotRun(reason)
        base = timing.allocated_bytes(self.task.device)
        running = None
        try:
            running = implementation.build(self.task)
            alpha = self.task.alpha if implementation.alpha is None else implementation.alpha
            errors = self._errors(running, self._expected[alpha])
            running.step()  # makes the optimiser's state
            peak = timing.peak_above(base, running.step, self.task.device)
            step, facts = running.step, partial(self._facts_of, running)
            return Checked(lambda _: step, peak, errors, facts)
        except Exception as error:  # is kept as the reason, and must not keep a model alive
            traceback.clear_frames(error.__traceback__)
            del running
            raise

    def _errors(self, running: Running, expected: dict[str, Tensor]) -> dict[str, float]:
        got = loss_and_gradients(running.llama, self.checked, running.backward(self.checked))
        running.optimizer.zero_grad(set_to_none=True)
        tolerances = {"loss": LOSS_TOLERANCE[self.task.dtype]}
        return {
            name: relative_error(name, got[name], want, tolerances.get(name, TOLERANCE[self.task.dtype]))
            for name, want in expected.items()
        }

    def _facts_of(self, running: Running) -> dict[str, Any]:
        """The breakdown is from an extra step. If it fails the row has the reason: the times are taken already."""
        tokens, parameters = int(lengths(self.task.case).sum()), Parameters(self.task.recipe).total
        facts: dict[str, Any] = {"tokens": tokens, "parameters": parameters}
        try:
            shares, positions = breakdown(running, self.task.device)
        except Exception as error:
            return facts | {"breakdown": None, "breakdown_reason": f"{type(error).__name__}: {error}"[:200]}
        return facts | {"breakdown": shares, "padded_tokens": positions}


def by_definition(task: Task, alphas: Sequence[float]) -> dict[float, dict[str, Tensor]]:
    """For each strength of the soft mask: each text by itself, attention and loss from conan_fast.reference.

    In float64 (RMSNorm and rotary embeddings round to float32 within transformers), in float32 for a large model.
    """
    AttentionInterface.register(DEFINITION, _attention)
    llama = task.model().model.requires_grad_(False)
    llama.config._attn_implementation = DEFINITION
    llama.to(torch.float32 if Parameters(task.recipe).total > LARGE else torch.float64)
    for parameter in watched(llama).values():
        parameter.requires_grad_()
    expected = {}
    for alpha in alphas:
        llama.zero_grad()
        loss = _loss(llama, task, alpha)
        loss.backward()
        expected[alpha] = loss_and_gradients(llama, task, loss)
    return expected


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


def loss_and_gradients(llama: LlamaModel, task: Task, loss: Tensor) -> dict[str, Tensor]:
    """Copies, of the embeddings' gradient the rows of the batch's tokens."""
    tokens = sorted({token for sequence in task.texts.sequences() for token in sequence})
    grads = {name: parameter.grad for name, parameter in watched(llama).items() if parameter.grad is not None}
    grads["embeddings"] = grads["embeddings"][torch.tensor(tokens, device=task.device)]
    return {"loss": loss.detach().double(), **{name: grad.detach().clone() for name, grad in grads.items()}}


def _loss(llama: LlamaModel, task: Task, alpha: float) -> Tensor:
    embeddings = []
    for sequence in task.texts.sequences():
        tokens = torch.tensor([sequence], device=task.device)
        embeddings.append(llama(input_ids=tokens, alpha=alpha).last_hidden_state[0].mean(0))
    pairs, recipe = len(task.texts.rows), task.stage_recipe()
    queries, positives, *negatives = torch.stack(embeddings).split(pairs)
    # The negatives of the first pair, of the second and so on.
    hard = torch.cat(negatives).unflatten(0, (pairs, -1)) if negatives else None
    return reference.info_nce(queries, positives, hard, temperature=recipe.temperature, dims=recipe.dims or None).loss


def _attention(
    _: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *__: Any, scaling: float, alpha: float, **___: Any
) -> tuple[Tensor, None]:
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return reference.soft_mask_attention(q, k, v, alpha, scale=scaling), None
