"""Rewards that somebody else's server gives."""
