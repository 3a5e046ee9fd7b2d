"""Implementations of a training step: ours, transformers on padded batches, sentence-transformers' trainer."""

from benchmarks.step.peers import ours, padded, sentence_transformers

IMPLEMENTATIONS = (*ours.IMPLEMENTATIONS, *padded.IMPLEMENTATIONS, *sentence_transformers.IMPLEMENTATIONS)
