"""Policies over factored discrete actions: environments, rollouts, algorithms; nothing here imports Lightning."""
