"""Measurements of the operators: `pytest benchmarks`, and commands such as `python -m benchmarks.attention`."""
