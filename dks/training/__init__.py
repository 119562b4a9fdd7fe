"""One run, from its frozen configuration to its finished record."""
