"""Benchmarks of forkpoint against the official savers. Run `python -m benchmarks`."""
