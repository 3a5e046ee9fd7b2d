"""Soft-masked attention, forward and backward: cases, random inputs, and the check against float64.

About 16,384 tokens, 32 query and 8 key/value heads, as in the paper's model; on a CPU a fourth of the heads and 1,024
tokens.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as functorch_config

from benchmarks import timing
from benchmarks.roofline import Work, attention_work
from benchmarks.suite import Checked, Implementation, NotRun, poison_free_memory, relative_error
from conan_fast import build_info

# A backward pass is repeated, so what a compiled forward pass saved must outlive it.
functorch_config.donated_buffer = False

PARTS = ("forward", "backward")
ALPHA = 0.3  # strength of the soft mask: above the diagonal every tile has work, and most are masked
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}
HEAD_DIMS = (112, 128)
LENGTHS = {"cuda": (512, 1024, 2048, 4096, 8192, 16384, 32768), "cpu": (128, 256, 512, 1024)}
HEADS = {"cuda": (32, 8), "cpu": (8, 2)}
TOKENS = {"cuda": 16384, "cpu": 1024}
TOLERANCE = 0.02  # relative (Frobenius) error of a head; rounding to bfloat16 makes 0.002
FLOAT32_TOLERANCE = 1e-4
CHECKED_HEADS = 4  # pairs of sequence and key/value head that are compared with float64


@dataclass(frozen=True)
class Case:
    """`batch` sequences of `length` tokens; with `shortest` a packed batch of `shortest` to `length` tokens."""

    batch: int
    length: int
    head_dim: int
    heads: int = 32
    kv_heads: int = 8
    element_size: int = 2
    shortest: int | None = None

    @property
    def layout(self) -> str:
        return "equal" if self.shortest is None else "packed"

    @property
    def lengths(self) -> list[int]:
        """Of each sequence; those of a packed batch are spread evenly."""
        return torch.linspace(self.shortest or self.length, self.length, self.batch).int().tolist()

    def work(self, part: str) -> Work:
        tokens, scores = sum(self.lengths), sum(length**2 for length in self.lengths)
        return attention_work(part, tokens, scores, self.heads, self.kv_heads, self.head_dim, self.element_size)


def cases(device_type: str) -> list[Case]:
    """Those nearest to L = 8,192 first, on a CPU to L = 512; head_dim 128 after 112, the paper's."""
    first = {"cuda": 8192, "cpu": 512}[device_type]
    pairs = [(length, head_dim) for length in LENGTHS[device_type] for head_dim in HEAD_DIMS]
    pairs.sort(key=lambda pair: (abs(math.log2(pair[0] / first)) + 1.5 * (pair[1] != 112), pair))
    size, tokens = DTYPES[device_type].itemsize, TOKENS[device_type]
    return [Case(max(1, tokens // length), length, head_dim, *HEADS[device_type], size) for length, head_dim in pairs]


def on_request(device_type: str) -> list[Case]:
    """Packed against padded: 256 sequences of 5 to 128 tokens."""
    return [Case(256, 128, 64, 4, 2, 4, shortest=5)] if device_type == "cpu" else []


# q [B, L, H, D], k and v [B, L, Hkv, D] -> [B, L, H, D]; of a packed batch [T, H, D] and [T, Hkv, D] -> [T, H, D].
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
Build = Callable[[Case, torch.device], Attention]  # what it makes, such as a mask, costs memory but no time


@dataclass(frozen=True)
class AttentionImplementation(Implementation):
    """alpha: of the soft mask that it applies, 1 is no mask. squares: tensors [B, H, L, L] that it holds at once."""

    build: Build
    alpha: float = ALPHA
    squares: int = 0
    dense_mask: bool = False
    tolerance: float = TOLERANCE
    layouts: Sequence[str] = ("equal",)

    def bytes_needed(self, case: Case) -> int:
        """The dense mask is first made in float32."""
        row = 8 * case.head_dim + self.squares * case.length
        mask = 16 * case.length**2 * self.dense_mask
        return case.element_size * case.batch * case.heads * case.length * row + mask


def expanded(x: Tensor, heads: int) -> Tensor:
    """[B, L, Hkv, D] -> [B, H, L, D]: copies each key/value head for the query heads that share it."""
    return x.repeat_interleave(heads // x.shape[2], dim=2).transpose(1, 2)


def our_backend(device: torch.device) -> str:
    return "cuda" if device.type == "cuda" and "cuda" in build_info()["available_backends"] else "torch"


def random_inputs(case: Case, device: torch.device, seed: int) -> list[Tensor]:
    """q, k and v, which require gradients, and the gradient of the output."""
    generator = torch.Generator(device).manual_seed(seed)
    rows = (case.batch, case.length) if case.shortest is None else (sum(case.lengths),)
    *leaves, grad_out = (
        torch.randn(*rows, heads, case.head_dim, device=device, generator=generator).to(DTYPES[device.type])
        for heads in (case.heads, case.kv_heads, case.kv_heads, case.heads)
    )
    return [*(x.requires_grad_() for x in leaves), grad_out]


class Workload:
    """Random inputs of a case, bfloat16 on a GPU and float32 on a CPU, and their result in float64."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self.facts: dict[str, Any] = {"dtype": str(DTYPES[device.type]).removeprefix("torch.")}
        self.facts["our_backend"] = our_backend(device)
        self.inputs = timing.rotation(partial(random_inputs, case, device))
        pairs = case.batch * case.kv_heads
        chosen = torch.linspace(0, pairs - 1, min(pairs, CHECKED_HEADS)).round().int().tolist()
        self._checked = [divmod(pair, case.kv_heads) for pair in chosen]
        self._expected: dict[float, list[list[Tensor]]] = {}

    def check(self, implementation: AttentionImplementation) -> Checked:
        """Raises NotRun or WrongResult. errors: the largest of any checked head."""
        if self.case.layout not in implementation.layouts:
            raise NotRun(f"is not measured on a batch of {self.case.layout} sequences")
        *leaves, grad_out = self.inputs[0]
        expected = self._expectation(implementation.alpha)
        base = timing.allocated_bytes(self.device)
        attention = implementation.build(self.case, self.device)

        def step() -> list[Tensor]:
            out = attention(*leaves)
            return [out.detach(), *torch.autograd.grad(out, leaves, grad_out)]

        poison_free_memory(self.inputs[0])
        errors = self._errors(implementation, step(), expected)
        return Checked(partial(self._step, attention), timing.peak_above(base, step, self.device), errors)

    def _step(self, attention: Attention, part: str) -> timing.Step:
        """One pass, of the inputs in turn; for "backward" the forward pass of each is run here, once."""
        if part == "forward":
            turns = cycle([leaves for *leaves, _ in self.inputs])
            return lambda: attention(*next(turns))
        graphs = cycle([(attention(*leaves), leaves, grad_out) for *leaves, grad_out in self.inputs])

        def backward() -> None:
            out, leaves, grad_out = next(graphs)
            torch.autograd.grad(out, leaves, grad_out, retain_graph=True)

        return backward

    def _errors(
        self, implementation: AttentionImplementation, results: Sequence[Tensor], expected: Sequence[Sequence[Tensor]]
    ) -> dict[str, float]:
        tolerance = implementation.tolerance if results[0].dtype == torch.bfloat16 else FLOAT32_TOLERANCE
        errors = dict.fromkeys(("out", "dq", "dk", "dv"), 0.0)
        for (sequence, kv_head), heads, wanted in zip(self._checked, self._heads(results), expected, strict=True):
            for key, got, want in zip(errors, heads, wanted, strict=True):
                name = f"{key} of sequence {sequence}, key/value head {kv_head}"
                errors[key] = max(errors[key], relative_error(name, got, want, tolerance))
        return errors

    def _heads(self, tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """For each checked head, in float64: [L, 1, D] of tensors with key/value heads, [L, H / Hkv, D] of others."""
        for sequence, kv_head in self._checked:
            start, length = sum(self.case.lengths[:sequence]), self.case.lengths[sequence]
            rows = [x.reshape(-1, *x.shape[-2:])[start : start + length] for x in tensors]
            yield [x.unflatten(1, (self.case.kv_heads, -1))[:, kv_head].double() for x in rows]

    def _expectation(self, alpha: float) -> list[list[Tensor]]:
        """[out, dq, dk, dv] of each checked head."""
        if alpha not in self._expected:
            heads = self._heads([x.detach() for x in self.inputs[0]])
            self._expected[alpha] = [float64_attention(*head, alpha=alpha) for head in heads]
        return self._expected[alpha]


def float64_attention(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, *, alpha: float, block_bytes: int = 2**28
) -> list[Tensor]:
    """[out, dq, dk, dv] by the definition, a block of rows at a time; q, grad_out [L, G, D], k, v [L, 1, D]."""
    length, group, head_dim = q.shape
    key = torch.arange(length, device=q.device)
    log_m = (alpha * length / (key + 1).double()).clamp(max=1).log()  # above the diagonal
    out, *grads = (torch.zeros_like(x) for x in (q, q, k, v))
    for rows in key.split(max(1, block_bytes // (8 * group * length))):
        leaves = [x.detach().requires_grad_() for x in (q[rows], k, v)]
        scores = torch.einsum("igd,jhd->gij", leaves[0], leaves[1]) * head_dim**-0.5  # h is 1
        weights = (scores + torch.where(key <= rows[:, None], 0, log_m)).softmax(-1)
        block = torch.einsum("gij,jhd->igd", weights, leaves[2])
        out[rows] = block.detach()
        parts = torch.autograd.grad(block, leaves, grad_out[rows])
        for grad, where, part in zip(grads, (rows, key, key), parts, strict=True):
            grad[where] += part
    return [out, *grads]
