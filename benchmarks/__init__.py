"""Benchmarks of both plugins against a minimal program and other loaders. Results are in docs/performance.md."""
