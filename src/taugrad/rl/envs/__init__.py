"""Environments that gymnasium does not have."""
