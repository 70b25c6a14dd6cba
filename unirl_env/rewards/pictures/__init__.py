"""Rewards of pictures by rules."""
