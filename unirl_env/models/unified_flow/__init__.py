"""A decoder that writes a plan and then draws by flow matching, both with the same weights."""
