"""Features that can be taken off: one folder each, opened by name from the registry."""
