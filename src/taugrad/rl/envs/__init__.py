"""Environments of this package, and of others that register none with gymnasium."""
