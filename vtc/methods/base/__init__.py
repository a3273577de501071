"""Base classes of methods, one per stage, and the registry."""
