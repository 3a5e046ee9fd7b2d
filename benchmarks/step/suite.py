"""One optimiser step of the embedding stages against its peers, from texts to changed weights."""

from __future__ import annotations

from benchmarks.step.cases import Case
from benchmarks.step.peers import ours, padded, sentence_transformers
from benchmarks.step.shape import Shape, shapes
from benchmarks.suite import Suite

SUITE: Suite[Shape] = Suite(
    name="step",
    parts=("step",),
    shapes=shapes,
    case=Case,
    implementations=(
        *ours.IMPLEMENTATIONS,
        *padded.IMPLEMENTATIONS,
        *sentence_transformers.IMPLEMENTATIONS,
    ),
)
