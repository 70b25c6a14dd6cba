"""Rollouts: who plays the episodes, and how new weights reach the players."""
