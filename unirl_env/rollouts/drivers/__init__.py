"""Drivers: what acts in each kind of phase until all episodes of a batch are through it."""
