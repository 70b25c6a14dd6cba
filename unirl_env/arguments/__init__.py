"""Arguments: what numbers, places and names must be, and copies that are made from what was given."""
