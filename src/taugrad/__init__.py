"""Train networks through discrete choices."""
