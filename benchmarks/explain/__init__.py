"""What a compiled kernel is made of and how fast it could be at most: `python -m benchmarks explain KERNEL`."""
