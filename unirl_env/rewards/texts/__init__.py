"""Rewards of texts by rules."""
