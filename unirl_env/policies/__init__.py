"""Policies: the trained half of a model, in plain torch and as RLlib modules."""
