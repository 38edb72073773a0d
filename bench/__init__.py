"""Benchmarks: selfloop beside the libraries that people use today, on equal terms, in one run.

`scripts/bench` runs it; docs/performance.md has the rules and the figures.
"""
