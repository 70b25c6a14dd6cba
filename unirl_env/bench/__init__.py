"""Benchmarks of algorithms: what is run, what is known of it, and the page that says so."""
