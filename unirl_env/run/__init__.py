"""A run: from settings to a trained policy, its record and its report."""
