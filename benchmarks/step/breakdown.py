"""Where the time of a step goes, measured in place: in extra steps whose parts are between marks.

A part is between two identity functions of the graph: what takes its inputs and what gives its outputs. Each puts a
mark into the stream of work, in the forward pass, and in the backward pass where the gradients go through it the other
way. Gradients stay what they are, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks import timing
from benchmarks.step.implementation import LossOf, Running

STEPS = 3


@dataclass(frozen=True)
class Breakdown:
    """shares: of the instrumented steps; "rest" is what no other part has. positions: of a step's forward passes with
    a graph, padding too."""

    shares: dict[str, float]
    positions: int


def breakdown(running: Running, device: torch.device) -> Breakdown:
    """Of STEPS further steps; the loss is in the rest where it is not to be had by itself."""
    clock, steps, watch = timing.Clock(device), [], Stopwatch(device)
    with watch.on(running):
        for _ in range(STEPS):
            clock.prepare()  # lets the host get ahead, as when the time of a step is taken
            with timing.Span(device) as span:
                running.step()
            steps.append(span)
    total = sum(span.seconds() for span in steps)
    shares = {name: sum(span.seconds() for span in spans) / total for name, spans in watch.spans.items()}
    return Breakdown({**shares, "rest": 1 - sum(shares.values())}, watch.positions // STEPS)


@dataclass
class Stopwatch:
    """spans: by part, each forward or backward once. positions: that went through the model with a graph."""

    device: torch.device
    spans: dict[str, list[timing.Span]] = field(default_factory=dict)
    positions: int = 0

    @contextmanager
    def on(self, running: Running) -> Iterator[None]:
        """Steps of `running` are measured within it."""
        self.spans = {name: [] for name in ("attention", "projections", "optimiser")}
        with ExitStack() as stack:
            stack.callback(running.llama.embed_tokens.register_forward_pre_hook(self._count).remove)
            for module in running.llama.modules():
                if isinstance(module, nn.Linear):
                    for handle in self._around(module):
                        stack.callback(handle.remove)
            stack.enter_context(self._attention(running.llama.config._attn_implementation))
            for handle in self._optimiser(running.optimizer):
                stack.callback(handle.remove)
            if (loss := running.loss_through(self._loss)) is not None:
                self.spans["loss"] = []
                stack.enter_context(loss)
            yield

    def span(self, part: str) -> timing.Span:
        self.spans[part].append(timing.Span(self.device))
        return self.spans[part][-1]

    def _count(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        if torch.is_grad_enabled():
            self.positions += inputs[0].numel()

    def _around(self, module: nn.Module) -> Iterator[Any]:
        passes: list[_Pass] = []

        def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            passes.append(_Pass(self, "projections"))
            return passes[-1].inputs(*inputs)

        yield module.register_forward_pre_hook(before)
        yield module.register_forward_hook(lambda _, __, output: passes.pop().outputs(output)[0])

    @contextmanager
    def _attention(self, name: str) -> Iterator[None]:
        plain = ALL_ATTENTION_FUNCTIONS[name]

        def timed(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Any]:
            part = _Pass(self, "attention")
            out, weights = plain(module, *part.inputs(q, k, v), *rest, **options)
            return part.outputs(out)[0], weights

        AttentionInterface.register(name, timed)
        try:
            yield
        finally:
            AttentionInterface.register(name, plain)

    def _optimiser(self, optimizer: torch.optim.Optimizer) -> Iterator[Any]:
        yield optimizer.register_step_pre_hook(lambda *_: self.span("optimiser").begin())
        yield optimizer.register_step_post_hook(lambda *_: self.spans["optimiser"][-1].end())

    def _loss(self, loss_of: LossOf) -> LossOf:
        """Forward and backward within one span, before the graph of the embeddings is gone through."""

        def both_ways(embeddings: Tensor) -> Tensor:
            leaf = embeddings.detach().requires_grad_()
            with self.span("loss"):
                loss = loss_of(leaf)
                loss.backward()
            return _Known.apply(embeddings, loss.detach(), leaf.grad)

        return both_ways


class _Pass:
    """One call of a part."""

    def __init__(self, watch: Stopwatch, part: str) -> None:
        self.forward, self._watch, self._part = watch.span(part), watch, part

    def inputs(self, *tensors: Any) -> tuple[Any, ...]:
        return _Mark.apply(self.forward.begin, self._end_backward, *tensors)

    def outputs(self, *tensors: Any) -> tuple[Any, ...]:
        return _Mark.apply(self.forward.end, self._begin_backward, *tensors)

    def _begin_backward(self) -> None:
        self._backward = self._watch.span(self._part)
        self._backward.begin()

    def _end_backward(self) -> None:
        self._backward.end()


class _Mark(torch.autograd.Function):
    """Tensors as they are; a call forward, another backward."""

    @staticmethod
    def forward(ctx: Any, forward: Callable[[], None], backward: Callable[[], None], *tensors: Any) -> tuple[Any, ...]:
        ctx.backward_mark = backward
        forward()
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        ctx.backward_mark()
        return None, None, *grads


class _Known(torch.autograd.Function):
    """A loss whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0], None, None
