"""Prompts: where they come from, what an entry may hold, and the sets that ship with the library."""
