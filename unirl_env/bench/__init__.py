"""Benchmarks: many runs of many algorithms, and what can be told from them; `python -m unirl_env.bench`."""
