"""Intervals that cover: what every report of the library says of the mean of a few seeds or prompts.

Each interval carries how often it covered the truth when that was measured (`benchmarks/coverage.py`).
"""

from unirl_env.statistics.interval import Interval, coverage_in_words
from unirl_env.statistics.mean import mean_band, mean_interval

__all__ = ["Interval", "coverage_in_words", "mean_band", "mean_interval"]
