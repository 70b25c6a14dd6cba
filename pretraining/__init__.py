"""How the embedded models were made: architecture, data and training of each. Not part of the wheel."""
