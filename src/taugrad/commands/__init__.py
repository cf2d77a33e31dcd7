"""The commands: a file each, its config next to it."""
