"""Rewards by trained networks."""
