"""Measurements of the operators and of a training step: `python -m benchmarks --help`, and `pytest benchmarks -n0`."""
