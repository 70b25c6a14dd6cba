"""Benchmarks of algorithms."""
