"""Policies over factored discrete actions: environments, rollouts, returns. Nothing here knows of Lightning."""
