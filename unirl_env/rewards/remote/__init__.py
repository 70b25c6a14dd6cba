"""Rewards that a reward service gives."""
