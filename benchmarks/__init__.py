"""Measurements of the pair against floors and peers: see docs/performance.md."""
