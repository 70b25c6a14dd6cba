"""What several model families have in common."""
