"""Which parts take the time of a step, by torch's profiler, in an extra step.

A part is what runs under its name in the forward pass, and the backward operations of the graph nodes made there.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._profiler import _ExperimentalConfig
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks.step.implementation import Running

BACKWARD = "autograd::engine::evaluate_function: "  # names of the profiler's events
PARTS = {"attention": "attention", "aten::linear": "projections", "loss": "loss", "Optimizer.step": "optimiser"}


def breakdown(running: Running, device: torch.device) -> tuple[dict[str, float], int]:
    """Of one extra step, for the profiler needs about 0.1 ms for each of its many events afterwards.

    Returns the parts' shares of its time, "rest" for what belongs to no part (on a GPU also its idle time, and the loss
    if it cannot be separated), and the positions of its forward passes with a graph, padding included.
    """
    positions = 0

    def count(_: nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal positions
        positions += inputs[0].numel() * torch.is_grad_enabled()

    hook = running.llama.embed_tokens.register_forward_pre_hook(count)
    try:
        with marked(running), profiler(device) as profiled, record_function("step"):
            running.step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    finally:
        hook.remove()
    events = profiled.events() or []
    total = sum(event.cpu_time_total for event in events if event.name == "step")
    seconds = dict.fromkeys(("attention", "projections", "optimiser"), 0.0)
    for part, event in events_of_parts(events):
        time = event.cpu_time_total if device.type == "cpu" else event.device_time_total
        seconds[part] = seconds.get(part, 0.0) + time
    shares = {part: time / total for part, time in seconds.items()}
    return shares | {"rest": 1 - sum(shares.values())}, positions


def profiler(device: torch.device) -> profile:
    """Of all threads: a peer may run in one of its own."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    return profile(activities=activities, experimental_config=_ExperimentalConfig(profile_all_threads=True))


@contextmanager
def marked(running: Running) -> Iterator[None]:
    """Within it attention and, where possible, the loss of `running` have names for the profiler."""
    name = running.llama.config._attn_implementation
    plain = ALL_ATTENTION_FUNCTIONS[name]
    AttentionInterface.register(name, record_function("attention")(plain))
    try:
        with running.marked_loss():
            yield
    finally:
        AttentionInterface.register(name, plain)


def events_of_parts(events: Sequence[FunctionEvent]) -> list[tuple[str, FunctionEvent]]:
    """The outermost events of each part, forward and backward."""
    cpu = [event for event in events if event.device_type == torch.autograd.DeviceType.CPU]
    nodes: dict[tuple[int | None, int], str | None] = {}  # by thread and sequence number: the part that made it
    for event in sorted(cpu, key=lambda event: event.time_range.start):
        if event.sequence_nr >= 0 and not event.fwd_thread:
            # Operations that make no node have the number of the next: the last one with a number has made the node.
            nodes[event.thread, event.sequence_nr] = next(filter(None, map(_part, _ancestors(event))), None)

    def part(event: FunctionEvent) -> str | None:
        if event.name.startswith(BACKWARD):
            return nodes.get((event.fwd_thread, event.sequence_nr))
        return _part(event)

    found = [(part(event), event) for event in cpu]
    return [(name, event) for name, event in found if name and not any(map(part, [*_ancestors(event)][1:]))]


def _part(event: FunctionEvent) -> str | None:
    return PARTS.get(event.name.partition("#")[0])


def _ancestors(event: Any) -> Iterator[FunctionEvent]:
    """Begins with the event itself."""
    while event is not None:
        yield event
        event = event.cpu_parent
