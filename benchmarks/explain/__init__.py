"""What a compiled kernel consists of and how fast it can be at most: `python -m benchmarks explain KERNEL`."""
