"""A package with an algorithm to be benchmarked, and a suite to do it on."""
