"""A run's settings from recipes, files and what was typed."""
