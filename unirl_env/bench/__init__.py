"""Benchmarks of algorithms: suites, schedules, statistics and pages."""
